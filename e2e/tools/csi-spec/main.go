// Command csi-spec writes the official CSI descriptors, a serialized
// google.protobuf.FileDescriptorSet, to standard output: the reference that
// csi/proto is compared with.
package main

import (
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	set := &descriptorpb.FileDescriptorSet{}
	add(set, csi.File_csi_proto, map[string]bool{})
	bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err == nil {
		_, err = os.Stdout.Write(bytes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "csi-spec:", err)
		os.Exit(1)
	}
}

// add appends file after everything it imports, the order a descriptor pool wants.
func add(set *descriptorpb.FileDescriptorSet, file protoreflect.FileDescriptor, seen map[string]bool) {
	if seen[file.Path()] {
		return
	}
	seen[file.Path()] = true
	for i := range file.Imports().Len() {
		add(set, file.Imports().Get(i).FileDescriptor, seen)
	}
	set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
}
