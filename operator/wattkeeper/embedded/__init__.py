"""A small in-memory Kubernetes API server for the demo and the tests.

`server.EmbeddedApi` serves it over HTTP, `registry.Registry` is the same without HTTP, and `workloads.Workloads` turns
Deployments and StatefulSets into running pods. tests/contract runs one suite against this server and a real one.

Served: discovery, lists with selectors, watches, JSON merge, JSON, strategic and apply patches, managedFields, status
and scale subresources, finalizers, owners, namespaces, Tables for kubectl, CustomResourceDefinitions with structural
schemas.

Left out on purpose, and only enforced by a real API server: users and RBAC, admission webhooks, CEL rules of CRDs
(`x-kubernetes-validations`), conversion of CRD versions, chunked lists, logs and exec, most checks of built-in kinds.
Parts of Kubernetes that are not here answer 501 and say so.
"""
