"""The NFS lab: a guest with a real server, client and overlay, in which an application launch is measured in RPCs."""
