{{/* The image of all Curve processes. */}}
{{- define "curve.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Labels of every object; takes a dict of root and component. */}}
{{- define "curve.labels" -}}
{{ include "curve.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Labels that find the pods of one component. */}}
{{- define "curve.selector" -}}
app.kubernetes.io/name: curve
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Environment that every process of ours reads. */}}
{{- define "curve.env" -}}
- name: CURVE_LOG
  value: {{ .Values.logLevel | quote }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}

{{/* Containers that need nothing of the node. */}}
{{- define "curve.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: {drop: [ALL]}
{{- end }}

{{/* One pod of a component per node, as far as there are nodes. */}}
{{- define "curve.spread" -}}
topologySpreadConstraints:
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "curve.selector" . | nindent 6 }}
{{- end }}

{{- define "curve.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Not empty where the cluster has the API of volume snapshots, which is not part of Kubernetes. */}}
{{- define "curve.snapshots" -}}
{{- if .Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1" }}yes{{ end }}
{{- end }}
