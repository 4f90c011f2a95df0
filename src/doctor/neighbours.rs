//! The other tenants of the disk: at which free room a kubelet or K3s acts, and whether Larder gives way before.
//!
//! Their settings are read from the arguments of what runs and from their files, line by line: the keys that matter are
//! plain scalars, and what is written in another way is not found. Pure but for those looks; what cannot be read is left out.

use super::{Finding, System};
use crate::budget;
use crate::config::Config;
use crate::text::bytes_text;
use std::path::Path;

const DISK: &str = "disk";
/// Where K3s and the kubelet keep their settings.
const K3S_FILE: &str = "/etc/rancher/k3s/config.yaml";
const K3S_FOLDER: &str = "/etc/rancher/k3s/config.yaml.d";
const KUBELET_FILE: &str = "/var/lib/kubelet/config.yaml";
const KUBELET_FOLDERS: [&str; 2] =
    ["/etc/kubernetes/kubelet.conf.d", "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d"];

/// Who watches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenant {
    Kubelet,
    K3s,
}

impl Tenant {
    fn name(self) -> &'static str {
        match self {
            Tenant::Kubelet => "the kubelet",
            Tenant::K3s => "K3s",
        }
    }
}

/// Free room below which something happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum FreeLine {
    Percent(f64),
    Bytes(u64),
}

impl FreeLine {
    pub(super) fn of(self, total: u64) -> u64 {
        match self {
            FreeLine::Percent(percent) => (total as f64 / 100.0 * percent) as u64,
            FreeLine::Bytes(bytes) => bytes,
        }
    }

    /// `10%`, `1Gi`, `500M`.
    fn parse(text: &str) -> Option<FreeLine> {
        let text = text.trim().trim_matches(['"', '\'']);
        match text.strip_suffix('%') {
            Some(number) => number.trim().parse().ok().map(FreeLine::Percent),
            None => quantity(text).map(FreeLine::Bytes),
        }
    }
}

/// Bytes as Kubernetes writes them: `500M`, `2Gi`.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let power = |base: u64, unit: &str| {
        let at = ["", "K", "M", "G", "T"].iter().position(|known| known.eq_ignore_ascii_case(unit))?;
        base.checked_pow(u32::try_from(at).ok()?)
    };
    let unit = &text[digits..];
    let factor = match unit.strip_suffix('i') {
        Some(unit) => power(1024, unit),
        None => power(1000, unit),
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor?)
}

/// What a tenant does, and when.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Limits {
    tenant: Tenant,
    /// Pods are evicted below these.
    pub(super) evict: Vec<FreeLine>,
    /// Unused images are removed above so many hundredths used.
    pub(super) collect: u8,
}

impl Limits {
    /// Its own defaults.
    pub(super) fn default_of(tenant: Tenant) -> Limits {
        let evict = match tenant {
            Tenant::Kubelet => vec![FreeLine::Percent(10.0), FreeLine::Percent(15.0)],
            Tenant::K3s => vec![FreeLine::Percent(5.0), FreeLine::Percent(5.0)],
        };
        Limits { tenant, evict, collect: 85 }
    }

    /// An argument of a kubelet, with or without its dashes.
    pub(super) fn argument(&mut self, argument: &str) {
        let argument = argument.trim().trim_matches(['"', '\'']).trim_start_matches('-');
        let Some((name, value)) = argument.split_once('=') else { return };
        match name {
            // What is listed replaces the defaults.
            "eviction-hard" => {
                let listed = value.split(',').filter_map(|one| one.split_once('<'));
                self.evict = listed.filter_map(|(signal, line)| disk_line(signal, line)).collect();
            }
            "image-gc-high-threshold" => self.collect = value.parse().unwrap_or(self.collect),
            "kubelet-arg" => self.argument(value),
            _ => {}
        }
    }

    /// A KubeletConfiguration.
    pub(super) fn kubelet_file(&mut self, text: &str) {
        let mut listed: Option<Vec<FreeLine>> = None;
        for line in text.lines() {
            let Some((key, value)) = line.split('#').next().unwrap_or("").split_once(':') else { continue };
            if !key.starts_with([' ', '\t']) {
                match key.trim() {
                    "imageGCHighThresholdPercent" => {
                        self.collect = value.trim().parse().unwrap_or(self.collect);
                    }
                    "evictionHard" => listed = Some(Vec::new()),
                    _ if listed.is_some() => self.evict = listed.take().unwrap_or_default(),
                    _ => {}
                }
            } else if let Some(lines) = &mut listed {
                lines.extend(disk_line(key, value));
            }
        }
        self.evict = listed.unwrap_or_else(|| std::mem::take(&mut self.evict));
    }

    /// The `kubelet-arg` of a configuration of K3s.
    pub(super) fn k3s_file(&mut self, text: &str) {
        let mut inside = false;
        for line in text.lines() {
            let line = line.split(" #").next().unwrap_or("").trim_end();
            if let Some(item) = line.trim_start().strip_prefix("- ").filter(|_| inside) {
                self.argument(item);
            } else if !line.starts_with([' ', '#']) && !line.is_empty() {
                let (key, value) = line.split_once(':').unwrap_or((line, ""));
                inside = key.trim_end_matches('+') == "kubelet-arg";
                // In quotes an item may have a comma.
                let items = value.trim().trim_matches(['[', ']']).split("\",");
                items.filter(|_| inside).for_each(|item| self.argument(item));
            }
        }
    }

    /// Free bytes below which it does something, and what it does then.
    pub(super) fn first(&self, total: u64) -> (u64, &'static str) {
        let collects =
            (FreeLine::Percent(100.0 - f64::from(self.collect.min(100))).of(total), "removes unused images");
        let evicts = self.evict.iter().map(|line| (line.of(total), "declares disk pressure and evicts pods"));
        evicts.fold(collects, |first, next| if next.0 >= first.0 { next } else { first })
    }
}

fn disk_line(signal: &str, line: &str) -> Option<FreeLine> {
    matches!(signal.trim().trim_matches('"'), "nodefs.available" | "imagefs.available")
        .then(|| FreeLine::parse(line))
        .flatten()
}

/// Who watches this board's disk, and by which limits.
pub(super) fn limits(system: &System) -> Vec<Limits> {
    let running = arguments(system);
    let of = |name: &'static str| {
        running.iter().filter(move |words| {
            words.first().is_some_and(|program| program.rsplit('/').next().is_some_and(|last| last == name))
        })
    };
    let mut found = Vec::new();
    if system.has("/etc/rancher/k3s") || super::pulls::has_k3s(system) || of("k3s").next().is_some() {
        let mut limits = Limits::default_of(Tenant::K3s);
        files_in(system, KUBELET_FOLDERS[1]).iter().for_each(|text| limits.kubelet_file(text));
        let texts = system.text(K3S_FILE).into_iter().chain(files_in(system, K3S_FOLDER));
        texts.for_each(|text| limits.k3s_file(&text));
        of("k3s").flatten().for_each(|word| limits.argument(word));
        found.push(limits);
    }
    if system.has(KUBELET_FILE) || of("kubelet").next().is_some() {
        let mut limits = Limits::default_of(Tenant::Kubelet);
        let texts = system.text(KUBELET_FILE).into_iter().chain(files_in(system, KUBELET_FOLDERS[0]));
        texts.for_each(|text| limits.kubelet_file(&text));
        of("kubelet").flatten().for_each(|word| limits.argument(word));
        found.push(limits);
    }
    found
}

/// The words of every process that runs.
fn arguments(system: &System) -> Vec<Vec<String>> {
    let processes = std::fs::read_dir(system.at("/proc")).into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let words = |id| {
        let text = system.text(&format!("/proc/{id}/cmdline"))?;
        Some(text.split(['\0', ' ']).filter(|word| !word.is_empty()).map(str::to_owned).collect())
    };
    ids.take(budget::DOCTOR_PROCESSES_MAX).filter_map(words).collect()
}

/// The texts of the files in a folder, in the order in which they count.
fn files_in(system: &System, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(system.at(folder)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names.iter().filter_map(|name| system.text(&format!("{folder}/{name}"))).collect()
}

/// Whether Larder gives way before its neighbours act on a file system of `total` bytes.
pub(super) fn neighbours(config: &Config, system: &System, folder: &Path) -> Vec<Finding> {
    let Ok(stat) = rustix::fs::statvfs(folder) else { return Vec::new() };
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    limits(system).iter().map(|limits| finding(config, limits, total)).collect()
}

pub(super) fn finding(config: &Config, limits: &Limits, total: u64) -> Finding {
    let (own, (line, does)) = (config.disk.min_free.of(total), limits.first(total));
    let tenant = limits.tenant.name();
    let shown = format!("{tenant} {does} below {} free of {}", bytes_text(line), bytes_text(total));
    if own > line {
        let own = bytes_text(own);
        return Finding::ok(
            DISK,
            format!("larder gives way below {own} free, before {tenant} acts: {shown}"),
        );
    }
    // A step above the line, so that it is not reached between two looks at the disk.
    let percent = ((line as f64 / total.max(1) as f64 * 100.0 + 0.5) / 5.0).floor() * 5.0 + 5.0;
    let what = format!(
        "{shown}, before larder gives way (disk.min_free is {}): a full cache costs pods or images, again and again",
        bytes_text(own)
    );
    Finding::warning(
        DISK,
        what,
        format!("set min_free = \"{}%\" in [disk] of larder.toml", percent.min(90.0)),
    )
}
