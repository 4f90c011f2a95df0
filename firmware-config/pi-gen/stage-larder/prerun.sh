#!/bin/bash -e
# pi-gen calls this before the stage: it goes on from the system that the stage before has made.

if [ ! -d "${ROOTFS_DIR}" ]; then
    copy_previous
fi
