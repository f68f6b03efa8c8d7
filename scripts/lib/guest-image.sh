# shellcheck shell=bash
#
# What a guest boots from, made once and kept in the cache folder: a Debian kernel with the few modules that the scenarios
# need, an initramfs that holds them, and a root image with the tools. Nothing of it is installed on the host.
# Sourced, never run. Needs say.sh and packages.sh, and $vm_scripts: where the guest's own scripts lie.
#
#   $vm_cache/kernel-PACKAGE-DIGEST/   vmlinux (uncompressed ELF: its PVH entry spares the guest the unpacking), initramfs
#   $vm_cache/root-DIGEST.ext2         the root filesystem
#
# A DIGEST is that of the recipe, so that a changed recipe is built anew.

: "${vm_scripts:?must be set before guest-image.sh is sourced}"
vm_cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ashlar}/vm

# Modules that scenarios use, by name; what these depend on comes along.
guest_modules=(
    virtio_pci virtio_blk virtio_net 9pnet_virtio 9p hostfs overlay ext2 ext4 xfs btrfs autofs4 nbd vsock_loopback
    dm-mod dm-crypt dm-snapshot dm-raid dm-thin-pool raid0 raid1 raid456 linear
    crc32c_generic crc32c-intel xxhash_generic blake2b_generic sha256_generic
    aesni-intel aes_generic xts cbc ecb essiv algif_skcipher algif_hash
)

# Programs that scenarios use, by package.
guest_packages=(
    nbd-client e2fsprogs xfsprogs btrfs-progs lvm2 thin-provisioning-tools mdadm cryptsetup-bin util-linux mount kmod iproute2 python3
    systemd udev
)

# once LOCK-NAME COMMAND…: run the command while no other run of our scripts builds the same thing.
once() {
    local lock=$vm_cache/$1.lock
    shift
    mkdir -p "$vm_cache"
    (
        flock 9
        "$@"
    ) 9>"$lock"
}

# kernel_package WISH: the package that holds the kernel itself, where WISH may be a package that only points to it.
kernel_package() {
    local depends
    depends=$(apt-cache "${apt_options[@]}" depends --no-recommends --no-suggests "$1" | awk '/Depends: linux-image-/ { print $2; exit }')
    echo "${depends:-$1}"
}

# unpack_vmlinux VMLINUZ ELF: cut the compressed ELF out of a bzImage; the boot protocol's header says where it lies.
unpack_vmlinux() {
    local image=$1 setup_sectors offset length start magic
    setup_sectors=$(od -An -tu1 -j 497 -N 1 "$image")   # 0x1f1
    offset=$(od -An -tu4 -j 584 -N 4 "$image")          # 0x248 payload_offset
    length=$(od -An -tu4 -j 588 -N 4 "$image")          # 0x24c payload_length
    start=$(((setup_sectors + 1) * 512 + offset))
    magic=$(od -An -tx1 -j "$start" -N 4 "$image" | tr -d ' ')
    tail -c +$((start + 1)) "$image" | head -c "$length" | case $magic in
        fd377a58) xz -dc --single-stream ;;
        28b52ffd) zstd -dcq ;;
        1f8b*) gzip -dc ;;
        *) cat ;;
    esac >"$2" 2>/dev/null || true   # the payload is followed by its length, which the unpackers call trailing garbage
    [[ $(head -c 4 "$2" | tail -c 3) == ELF ]] || die "no ELF kernel in $image (its payload begins with $magic)"
}

# pick_modules FROM TO RELEASE: copy the modules we need, uncompressed and without signatures and debug information (checking a
# signature is slow when emulated), and index them.
pick_modules() {
    local from=$1 to=$2 release=$3 name path
    depmod -b "$from" "$release"
    for name in "${guest_modules[@]}"; do
        modprobe -d "$from" -S "$release" --show-depends "$name" 2>/dev/null || true   # built in, or not in this kernel
    done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r path; do
        name=$to/lib/modules/$release/$(basename "$path")
        mkdir -p "${name%/*}"
        case $path in
            *.xz) xz -dc "$path" >"${name%.xz}" ;;
            *.zst) zstd -dcq "$path" >"${name%.zst}" ;;
            *) cp "$path" "$name" ;;
        esac
    done
    strip --strip-debug "$to/lib/modules/$release"/*.ko
    cp "$from/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$to/lib/modules/$release/"
    depmod -b "$to" "$release"
}

# make_initramfs TREE OUTPUT: busybox, the modules already in TREE, and our init.
make_initramfs() {
    local tree=$1 output=$2
    mkdir -p "$tree/bin"
    cp "$vm_scripts/guest/init" "$tree/init"
    chmod 755 "$tree/init"
    download_package busybox-static "$tree.busybox"
    cp "$tree.busybox"/{,usr/}bin/busybox "$tree/bin/" 2>/dev/null || true   # where it lies depends on the release
    [[ -x $tree/bin/busybox ]] || die "no busybox in the package busybox-static"
    (cd "$tree" && find . | bin/busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$output"
    rm -rf "$tree.busybox"
}

# digest: a short name for the recipe on standard input.
digest() { sha256sum | cut -c 1-16; }

# build_kernel PACKAGE FOLDER
build_kernel() {
    local package=$1 folder=$2 work release modules
    [[ -e $folder/done ]] && return
    say "guest: unpacking the kernel $package (once)"
    need_packages kmod binutils xz-utils zstd
    rm -rf "$folder"
    work=$folder/work
    mkdir -p "$work"
    download_package "$package" "$work/package"
    apt_options=()   # only the kernel comes from another suite
    modules=$(find "$work/package" -type d -name modules -path '*lib/*' -print -quit)   # where they lie depends on package and release
    [[ $modules == "$work/package/lib/modules" ]] || { mkdir -p "$work/package/lib" && mv "$modules" "$work/package/lib/"; }
    release=$(basename "$(ls -d "$work"/package/lib/modules/*)")
    if [[ $package == user-mode-linux ]]; then
        cp "$work/package/usr/bin/linux.uml" "$folder/vmlinux"
    else
        unpack_vmlinux "$work/package/boot/vmlinuz-$release" "$folder/vmlinux"
    fi
    pick_modules "$work/package" "$work/tree" "$release"
    make_initramfs "$work/tree" "$folder/initramfs"
    rm -rf "$work"
    touch "$folder/done"
}

# guest_kernel WISH SUITE: sets kernel_folder to the folder of that kernel, building it if it is not there. SUITE may be empty:
# what this machine's apt sources have.
guest_kernel() {
    local package
    apt_lists
    [[ -z $2 ]] || use_suite "$2" "$vm_cache/apt-$2"
    package=$(kernel_package "$1")
    kernel_folder=$vm_cache/kernel-$package-$(cat "$vm_scripts/guest/init" <(echo "${guest_modules[@]}") | digest)
    once kernel build_kernel "$package" "$kernel_folder"
    apt_options=()
}

# build_root IMAGE: mmdebstrap with this machine's own Debian sources, as an ext2 image (any user may build it).
build_root() {
    local image=$1 log=$1.log start
    [[ -e $image ]] && return
    say "guest: building the root image (once)"
    need_packages mmdebstrap genext2fs
    apt_lists
    start=$(now_ms)
    debian_sources | mmdebstrap --variant=minbase --format=ext2 --include="$(IFS=,; echo "${guest_packages[*]}")" \
        "$(debian_codename)" "$image.new" - 2>"$log" || {
        cat "$log" >&2
        die "mmdebstrap could not build the root image"
    }
    mv "$image.new" "$image"
    say "guest: root image built in $(seconds_since "$start") s"
}

# guest_root: sets root_image to the root filesystem.
guest_root() {
    root_image=$vm_cache/root-$( (debian_codename; echo "${guest_packages[@]}") | digest).ext2
    once root build_root "$root_image"
}
