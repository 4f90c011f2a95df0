"""What tests in Python are made of: the parts that more than one folder of tests/ uses.

    environment     files and folders that the caller of a test names
    scratch         folders that end with the tests
    process         programs: run to their end, or started, watched and stopped
    network         ports and network namespaces
    http_client     one request, one answer
    http_server     a server whose answers are a function
    certificate     a key and a certificate that it signed itself
    debian          Debian packages without installing them, and small Debian systems
    loop_disk       a file system of its own
    oci             media types and digests
    images          real images, built from Debian packages
    random_image    an image of random bytes
    docker_registry Debian's registry
    larder          the program under test
    parts           a test that is made of a registry and a Larder
    skopeo          copies of images

PYTHONPATH names the folder tests/: tests/run and tests/bench/run set it.
"""
