//! The pure parts: texts of /proc as kernels write them, what a speed and an upstream's answer mean.

use super::disk::Speed;
use super::neighbours::{FreeLine, Limits, Tenant, finding, limits};
use super::network::{uplink, upstream};
use super::read::{controller_is_on, listener, meminfo, mount_of};
use super::{Severity, System};
use crate::config::{Config, MinFree, Options};
use crate::fetch::{Cause, Examined, Failure, RateLimit};
use std::path::Path;
use std::time::Duration;

const MOUNTS: &str = "\
22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw,errors=remount-ro
24 22 0:21 / /run rw - tmpfs tmpfs rw,size=1k
31 22 8:1 /sub /media/my\\040disk rw,relatime shared:9 master:2 - btrfs /dev/sda1 ro,space_cache
32 22 8:2 / /media rw - xfs /dev/sdb1 rw
33 22 8:3 / /media rw - f2fs /dev/sdc1 rw,nobarrier
garbage
";

#[test]
fn the_mount_of_a_path() {
    let kind = |path: &str| mount_of(MOUNTS, Path::new(path)).map(|mount| mount.kind);
    assert_eq!(kind("/var/lib/larder").as_deref(), Some("ext4"));
    assert_eq!(kind("/run/x").as_deref(), Some("tmpfs"));
    assert_eq!(kind("/runner").as_deref(), Some("ext4"));
    assert_eq!(kind("/media/my disk/a").as_deref(), Some("btrfs"));
    assert_eq!(kind("/media/x").as_deref(), Some("f2fs"), "the later mount covers the earlier");
    let card = mount_of(MOUNTS, Path::new("/")).unwrap();
    assert_eq!((card.device.as_str(), card.source.as_str()), ("179:2", "/dev/mmcblk0p2"));
    assert!(mount_of(MOUNTS, Path::new("/media/my disk")).unwrap().options.contains(&"ro".to_owned()));
    assert_eq!(mount_of("", Path::new("/")), None);
}

#[test]
fn numbers_of_proc() {
    let info = "MemTotal:         948304 kB\nMemAvailable:     512000 kB\nBad: x kB\n";
    assert_eq!(meminfo(info, "MemTotal"), Some(948_304 * 1024));
    assert_eq!((meminfo(info, "Bad"), meminfo(info, "Mem")), (None, None));
    let off = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t90\t1\nmemory\t0\t90\t0\n";
    assert_eq!((controller_is_on(off, "memory"), controller_is_on(off, "cpu")), (Some(false), Some(true)));
    assert_eq!(controller_is_on(off, "io"), None);
    let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
               0: 0100007F:1388 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
               1: 0100007F:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n";
    assert_eq!((listener(tcp, 5000), listener(tcp, 5001)), (Some(4711), None));
}

#[test]
fn what_a_speed_means() {
    let worst = |flush, bytes_per_second, slow_cells| {
        let speed = Speed { flush: Duration::from_micros(flush), bytes_per_second };
        speed.findings(slow_cells).into_iter().map(|finding| finding.severity).max().unwrap()
    };
    assert_eq!(worst(5_000, 20_000_000, true), Severity::Ok);
    assert_eq!(worst(5_000, 500_000, false), Severity::Warning);
    assert_eq!(worst(900_000, 20_000_000, false), Severity::Warning);
    assert_eq!(worst(20, 200_000_000, true), Severity::Warning, "no card flushes in 20 us");
    assert_eq!(worst(20, 2_000_000_000, false), Severity::Ok, "an NVMe disk with a capacitor does");
}

#[test]
fn what_an_upstream_says() {
    let severity = |private, outcome: &_| upstream("docker.io", private, outcome).severity;
    let limit = |left, of| Ok(Examined { limit: Some(RateLimit { left, of }) });
    assert_eq!(severity(false, &Ok(Examined { limit: None })), Severity::Ok);
    assert_eq!(severity(false, &limit(76, Some(100))), Severity::Ok);
    assert_eq!(severity(false, &limit(9, Some(100))), Severity::Warning);
    assert!(upstream("docker.io", false, &limit(9, Some(100))).what.contains("9 of 100"));
    let down = |cause| -> Result<Examined, Failure> {
        Err(Failure::Unreachable { cause, detail: "auth.docker.io: words".into() })
    };
    for (cause, expected, mend) in [
        (Cause::Dns, Severity::Warning, "getent hosts auth.docker.io"),
        (Cause::Refused, Severity::Warning, "ip route"),
        (Cause::Timeout, Severity::Warning, "ip route"),
        (Cause::Connection, Severity::Warning, "ip route"),
        (Cause::Tls, Severity::Bad, "ca_file"),
        (Cause::ServerError(503), Severity::Warning, "wait"),
        (Cause::RateLimited, Severity::Warning, "password_file"),
    ] {
        let finding = upstream("docker.io", false, &down(cause));
        assert_eq!(finding.severity, expected, "{cause:?}");
        assert!(finding.mend.unwrap().contains(mend), "{cause:?}");
    }
    let asks = "h: the other side asks for a client certificate (client_cert_file can name it)";
    let asks = Err(Failure::Unreachable { cause: Cause::Tls, detail: asks.into() });
    assert!(upstream("docker.io", false, &asks).mend.unwrap().contains("client_key_file"));
    let mend = upstream("docker.io at hub.lan:443/v2/proxy", false, &asks).mend.unwrap();
    assert!(mend.contains("[[upstream.\"docker.io\".endpoint]] that is hub.lan:443/v2/proxy"), "{mend}");
    // The uplink itself: one finding for all.
    let fail = |cause| down(cause).err().unwrap();
    let both = [fail(Cause::Dns), fail(Cause::Timeout)];
    assert!(uplink(2, 2, &both).unwrap().what.contains("none of the 2 upstreams"));
    assert!(uplink(3, 3, &both).is_none(), "one answers");
    assert!(uplink(3, 2, &both).is_some(), "one has not answered at all");
    assert!(uplink(2, 2, &[fail(Cause::Dns), fail(Cause::Tls)]).is_none());
    let denied = Err(Failure::Denied { status: 401, detail: "h: no".into() });
    assert_eq!(severity(true, &denied), Severity::Bad);
}

#[test]
fn the_lines_of_a_kubelet_and_of_k3s_are_read_from_arguments_and_files() {
    let percent =
        |numbers: &[f64]| numbers.iter().map(|number| FreeLine::Percent(*number)).collect::<Vec<_>>();
    let mut kubelet = Limits::default_of(Tenant::Kubelet);
    assert_eq!((kubelet.evict.clone(), kubelet.collect), (percent(&[10.0, 15.0]), 85));
    kubelet.kubelet_file(
        "kind: KubeletConfiguration\nevictionHard:\n  memory.available: 100Mi\n  nodefs.available: \"12%\" # ours\n  \
         imagefs.available: 2Gi\nimageGCHighThresholdPercent: 70\n",
    );
    assert_eq!(kubelet.evict, [FreeLine::Percent(12.0), FreeLine::Bytes(2 << 30)]);
    assert_eq!((kubelet.collect, kubelet.first(100 << 30).0), (70, 30 << 30));
    kubelet.argument("--eviction-hard=nodefs.available<35%,nodefs.inodesFree<5%");
    kubelet.argument("--image-gc-high-threshold=90");
    assert_eq!((kubelet.evict.clone(), kubelet.collect), (percent(&[35.0]), 90));
    assert!(kubelet.first(100).1.contains("evicts pods"));
    for text in [
        "write-kubeconfig-mode: \"0644\"\nkubelet-arg:\n  - \"eviction-hard=imagefs.available<8%\"\n  - image-gc-high-threshold=75\ntls-san: x\n",
        "kubelet-arg+: [\"eviction-hard=imagefs.available<8%\", \"image-gc-high-threshold=75\"]\n",
    ] {
        let mut k3s = Limits::default_of(Tenant::K3s);
        k3s.k3s_file(text);
        assert_eq!((k3s.evict.clone(), k3s.collect), (percent(&[8.0]), 75), "{text}");
    }
    let mut k3s = Limits::default_of(Tenant::K3s);
    k3s.k3s_file(
        "kubelet-arg: eviction-hard=nodefs.available<7%\nnode-label:\n  - image-gc-high-threshold=1\n",
    );
    k3s.argument("--kubelet-arg=image-gc-high-threshold=80");
    assert_eq!((k3s.evict.clone(), k3s.collect), (percent(&[7.0]), 80));
}

#[test]
fn who_acts_first_is_said_and_what_to_write() {
    let root = std::env::temp_dir().join(format!("larder-neighbours-{}", std::process::id()));
    let put = |path: &str, text: &str| {
        std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        std::fs::write(root.join(path), text).unwrap();
    };
    let system = System::made_up(&root, std::time::SystemTime::now(), 4096);
    put("larder.toml", "");
    assert_eq!(limits(&system), []);
    put("proc/17/cmdline", "/usr/bin/kubelet\0--config=/x\0--image-gc-high-threshold=60\0");
    put("etc/rancher/k3s/config.yaml.d/10.yaml", "kubelet-arg:\n- eviction-hard=nodefs.available<9%\n");
    let found = limits(&system);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].evict.clone(), found[0].collect), (vec![FreeLine::Percent(9.0)], 85));
    assert_eq!(found[1].collect, 60);
    let options = Options { file: Some(root.join("larder.toml")), ..Options::default() };
    let mut config = Config::load(&options).unwrap();
    let total = 64 << 30;
    assert_eq!(finding(&config, &found[0], total).severity, Severity::Ok);
    let first = finding(&config, &found[1], total);
    assert_eq!(first.severity, Severity::Warning);
    assert!(first.what.contains("the kubelet removes unused images below"), "{first:?}");
    assert!(first.mend.unwrap().contains("min_free = \"45%\""));
    config.disk.min_free = MinFree::Bytes(512 << 20);
    let first = finding(&config, &found[0], total);
    assert!(first.what.contains("K3s removes unused images") && first.mend.unwrap().contains("\"20%\""));
    std::fs::remove_dir_all(&root).unwrap();
}
