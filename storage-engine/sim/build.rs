//! Exports the clock and the source of randomness that `src/os.rs` puts in the place of libc's, so
//! that what looks them up at run time finds these as well.

fn main() {
    println!("cargo::rustc-link-arg-bins=-rdynamic");
}
