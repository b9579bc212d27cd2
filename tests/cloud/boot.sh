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
for place in /etc /usr/local /var/lib /var/log; do
    layer=$folder/layers/${place//\//-}
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay overlay -o "lowerdir=$place,upperdir=$layer/upper,workdir=$layer/work" "$place"
done
cp -r --preserve=mode "$folder/files/." /

# Devices of its own: what is attached to it appears there, and what it prints to its console is kept.
devices=$folder/layers/dev
mkdir "$devices"
mount -t tmpfs -o mode=755 none "$devices"
mkdir "$devices/shm"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom "$devices/"
ln -s /proc/self/fd "$devices/fd"
ln -s fd/0 "$devices/stdin"
ln -s fd/1 "$devices/stdout"
ln -s fd/2 "$devices/stderr"
touch "$devices/console"
mount --bind "$folder/console" "$devices/console"
mount --rbind "$devices" /dev
mkfifo /dev/ready

export PATH="$folder/bin:$PATH" FOLDER=$folder
bash "$folder/runcmd" >"$folder/boot.log" 2>&1 </dev/null || echo "boot failed: $?" >>"$folder/boot.log"
echo "booted" >>"$folder/boot.log"

# Takes in what loses its parent.
sleep infinity &
wait
