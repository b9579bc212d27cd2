#!/bin/bash
# The first process of a machine of the tests, in namespaces of its own: what cloud-init would do with
# the user data, which stands in FOLDER/files and FOLDER/runcmd.
#
#   boot.sh FOLDER
set -euo pipefail
folder=$1

# A disk of its own over the host's, which ends with it.
mkdir -p "$folder/layers"
mount -t tmpfs none "$folder/layers"
for place in /etc /usr/local /var/lib; do
    layer=$folder/layers/${place//\//-}
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay overlay -o "lowerdir=$place,upperdir=$layer/upper,workdir=$layer/work" "$place"
done
cp -r --preserve=mode "$folder/files/." /

export PATH="$folder/bin:$PATH" FOLDER=$folder
bash "$folder/runcmd" >"$folder/boot.log" 2>&1 </dev/null || echo "boot failed: $?" >>"$folder/boot.log"
echo "booted" >>"$folder/boot.log"

# Takes in what loses its parent.
sleep infinity &
wait
