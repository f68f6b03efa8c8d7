# shellcheck shell=bash
#
# The machine a guest runs on: QEMU with KVM where that really works, with emulation elsewhere; or, if asked for, user-mode Linux: the
# kernel as a process of this host, with one processor, much quicker than emulation.
# Sourced, never run. Needs say.sh, packages.sh and guest-image.sh.
# shellcheck disable=SC2154 # kernel_folder, root_image, vm_cache and vm_scripts are set by guest-image.sh or before it

# need_qemu: install it. QEMU's packages fit each other only at one version, and qemu-utils may be here from another source.
need_qemu() {
    local tools
    command -v qemu-system-x86_64 >/dev/null && return
    apt_lists
    say "packages: installing qemu-system-x86"
    tools=$(dpkg-query -W -f='${Version}' qemu-utils 2>/dev/null || true)
    apt_get install --no-install-recommends --no-remove qemu-system-x86 2>/dev/null && return
    apt_get install --no-install-recommends --no-remove "qemu-system-x86=$tools" 2>/dev/null && return
    warn "qemu-utils $tools does not fit the qemu-system-x86 of this machine's apt sources; taking both from there"
    apt_get install --no-install-recommends --allow-downgrades qemu-system-x86 \
        "qemu-utils=$(apt-cache madison qemu-system-x86 | awk 'NR == 1 { print $3 }')" ||
        die "cannot install qemu-system-x86; install it by hand and try again"
}

# accelerator_arguments NAME: sets `accelerator` to QEMU's arguments.
accelerator_arguments() {
    case $1 in
        uml) accelerator=(-accel uml) ;;   # for boot alone: no QEMU is there to read it
        kvm) accelerator=(-accel kvm -cpu host) ;;
        # Under emulation a plain old model is fastest; this one still has AES.
        tcg) accelerator=(-accel tcg -cpu Westmere) ;;
        *) die "the accelerator $1 is not known; known are kvm, tcg and uml" ;;
    esac
}

# boot_words: the kernel command line. What hardens a real machine only slows an emulated one that lives for a minute.
boot_words() {
    echo "quiet panic=-1 mitigations=off init_on_alloc=0 hardened_usercopy=off apparmor=0"
    # On a busy host an emulated guest mis-measures its clock, which then runs many times too fast: tell it. And it waits in vain
    # for the timer that it tries out, and panics: have it trust that one.
    [[ ${accelerator[1]} == tcg ]] && awk '/^cpu MHz/ { printf "no_timer_check tsc_early_khz=%d\n", $4 * 1000; exit }' /proc/cpuinfo
    true
}

# boot SHARE CONSOLE: start a guest in the background; its pid is then in `guest_pid`. SHARE is the shared folder, which
# holds the guest's scripts in guest/. What the kernel says goes to the file CONSOLE, what QEMU says to CONSOLE.qemu.
boot() {
    if [[ ${accelerator[1]} == uml ]]; then boot_uml "$@"; else boot_qemu "$@"; fi
}

boot_qemu() {
    local share=$1 console=$2
    qemu-system-x86_64 -nodefaults -display none -no-reboot -m "${VM_MEMORY:-1024}" "${accelerator[@]}" \
        -kernel "$kernel_folder/vmlinux" -initrd "$kernel_folder/initramfs" \
        -append "console=ttyS0 ashlar.image=/dev/vda ashlar.share=host $(boot_words | paste -sd ' ')" \
        -serial "file:$console" \
        -drive "file=$root_image,format=raw,if=none,id=root,readonly=on" -device virtio-blk-pci,drive=root \
        -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= \
        -virtfs "local,path=$share,mount_tag=host,security_model=none,id=host" \
        >"$console.qemu" 2>&1 </dev/null &
    guest_pid=$!
}

# boot_uml SHARE CONSOLE: in a network of its own, where slirp4netns gives it the address that QEMU's user network would, by a tap device
# from which the guest takes raw frames. On one processor: with each page fault it changes between processes of the host, which takes
# three times as long if they lie on two processors, one of them asleep.
boot_uml() {
    local share=$1 console=$2 pin=(taskset -c $((${guest_number:-0} % $(nproc))))
    "${pin[@]}" true 2>/dev/null || pin=()
    [[ -z ${whole_registers:-} ]] || pin+=(env "LD_PRELOAD=$whole_registers")
    # shellcheck disable=SC2016,SC2046 # the script is expanded by the inner shell; each of the boot words is one
    TMPDIR=/dev/shm unshare --net --pid --fork --kill-child bash -c 'until ip link set tap0 up mtu 65520 2>/dev/null; do sleep 0.05; done
        exec "$@"' uml "${pin[@]}" "$kernel_folder/vmlinux" "mem=${VM_MEMORY:-1024}M" "initrd=$kernel_folder/initramfs" "ubd0rc=$root_image" \
        vec0:transport=raw,ifname=tap0,mtu=65520 con=null con0=null,fd:1 ashlar.image=/dev/ubda "ashlar.share=$(realpath "$share")" $(boot_words) \
        >"$console" 2>"$console.uml" </dev/null &
    guest_pid=$!
    until [[ $(readlink "/proc/$guest_pid/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do sleep 0.01; done
    slirp4netns --mtu 65520 "$guest_pid" tap0 >"$console.network" 2>&1 </dev/null &
    network_pid=$!
}

# halt: end the guest that boot started.
halt() {
    if [[ -n ${network_pid:-} ]]; then
        kill -KILL "$network_pid" 2>/dev/null || true
        wait "$network_pid" 2>/dev/null || true
    fi
    kill -KILL "$guest_pid" 2>/dev/null || true
    wait "$guest_pid" 2>/dev/null || true
}

# build_whole_registers: what user-mode Linux needs on a processor with AMX; sets `whole_registers`.
build_whole_registers() {
    local source=$vm_scripts/whole-registers.c
    whole_registers=$vm_cache/whole-registers.so
    if [[ $whole_registers -nt $source ]]; then return; fi
    need_packages gcc libc6-dev
    gcc -O2 -shared -fPIC -o "$whole_registers.$$" "$source"
    mv "$whole_registers.$$" "$whole_registers"   # others may be using the old one
}

# choose_accelerator: sets `accelerator`. A /dev/kvm that opens is no proof that it runs a kernel (nested hosts), so a guest
# that does nothing is booted once, and the answer remembered for this machine.
choose_accelerator() {
    local memory name
    if [[ ${VM_ACCELERATOR:-} == uml ]]; then
        [[ $(id -u) == 0 ]] || die "user-mode Linux gets a network of its own, which only root can make; be root, or unset VM_ACCELERATOR"
        need_packages slirp4netns iproute2 util-linux
        ! grep -qw amx_tile /proc/cpuinfo || build_whole_registers
        accelerator_arguments uml
        say "guest: running as user-mode Linux"
        return
    fi
    need_qemu
    memory=$vm_cache/accelerator-$( (uname -srv; qemu-system-x86_64 --version; hostname) | digest)
    name=${VM_ACCELERATOR:-$(cat "$memory" 2>/dev/null || true)}
    if [[ -z $name ]]; then
        if kvm_works; then name=kvm; else name=tcg; fi
        echo "$name" >"$memory"
    fi
    accelerator_arguments "$name"
    say "guest: running by $name"
}

# kvm_works: does KVM carry a guest to its end within half a minute?
kvm_works() {
    local folder deadline works=1
    [[ -w /dev/kvm ]] || return 1
    say "guest: trying KVM (once)"
    folder=$(mktemp -d)
    mkdir -p "$folder/share/guest"
    cp "$vm_scripts/guest/run" "$folder/share/guest/"
    echo true >"$folder/share/guest/scenario"
    accelerator_arguments kvm
    boot "$folder/share" "$folder/console"
    deadline=$((SECONDS + 30))
    while ((SECONDS < deadline)) && kill -0 "$guest_pid" 2>/dev/null; do
        [[ -e $folder/share/exit ]] && works=0 && break
        [[ -s $folder/console.qemu ]] && break   # QEMU only speaks here when KVM gave up
        sleep 0.2
    done
    halt
    rm -rf "$folder"
    return "$works"
}
