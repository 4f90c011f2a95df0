//! Is a client of this board sent to larder, and for which registries.

use super::{Client, MirrorAddress, Present, containerd, docker, k3s, podman};
use std::path::{Path, PathBuf};

/// What K3s makes of `registries.yaml` when it starts.
const K3S_MADE: &str = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d";

/// What a client's files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Registries whose pulls go to larder.
    pub sent: Vec<String>,
    /// Registries whose pulls pass it by.
    pub passed_by: Vec<String>,
    /// Why nothing is sent here, or what is wrong with the files.
    pub problem: Option<String>,
    /// The files say so, but the client has not read them since: registries that it does not send yet.
    pub not_read_yet: Vec<String>,
}

/// Looks at the files of a client.
pub fn look(client: Client, mirror: &MirrorAddress, present: &dyn Present) -> Routing {
    let mut routing = Routing::default();
    let names = mirror.origins.iter().map(|origin| origin.name.to_string());
    let names: Vec<String> = match client {
        Client::Docker => names.filter(|name| name == docker::REGISTRY).collect(),
        _ => names.collect(),
    };
    let routes = match client {
        Client::Containerd => match containerd::Routes::read(present) {
            Ok(routes) => Some(routes),
            Err(problem) => {
                routing.problem = Some(problem);
                routing.passed_by = names;
                return routing;
            }
        },
        _ => None,
    };
    for name in names {
        let leads = match (client, &routes) {
            (Client::Containerd, Some(routes)) => routes.leads(&name, mirror, present),
            (Client::Containerd, None) => Ok(false),
            (Client::K3s, _) => k3s_leads(&name, mirror, present),
            (Client::Podman, _) => podman::leads(&name, mirror, present),
            (Client::Docker, _) => docker::leads(mirror, present),
        };
        match leads {
            Ok(true) => routing.sent.push(name),
            Ok(false) => routing.passed_by.push(name),
            Err(problem) => {
                routing.passed_by.push(name);
                routing.problem.get_or_insert(problem);
            }
        }
    }
    let made = Path::new(K3S_MADE);
    if client == Client::K3s && present.list(made).is_ok_and(|files| !files.is_empty()) {
        let made = containerd::Routes::of(made.to_owned());
        let not_yet = |name: &&String| !made.leads(name, mirror, present).unwrap_or(false);
        routing.not_read_yet = routing.sent.iter().filter(not_yet).cloned().collect();
    }
    routing
}

fn k3s_leads(registry: &str, mirror: &MirrorAddress, present: &dyn Present) -> Result<bool, String> {
    let Some(text) = present.read(Path::new(k3s::REGISTRIES))? else { return Ok(false) };
    Ok(k3s::endpoints(&text, registry)?.iter().any(|one| mirror.is_at(one)))
}

/// The file that sets a client's registries, for people.
pub fn file_of(client: Client) -> &'static str {
    match client {
        Client::Containerd => containerd::CONFIG,
        Client::K3s => k3s::REGISTRIES,
        Client::Podman => podman::MAIN,
        Client::Docker => docker::CONFIG,
    }
}

/// Where containerd keeps its data, if its configuration names a place of its own.
pub fn containerd_data(present: &dyn Present) -> Option<PathBuf> {
    containerd::Routes::data(present)
}
