"""What runs pgmoe on a cluster: a KubeRay manifest generated from `config.yaml`."""
