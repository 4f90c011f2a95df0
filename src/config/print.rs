//! `config print`: a configuration as the TOML that leads to it.

use super::secrets::without_secrets;
use super::units::{bandwidth_text, kept_text, size_text, span_text};
use super::{AuthSettings, Config, EndpointSettings, OnMissing, TagRule, UpstreamAccess, UpstreamSettings};
use std::fmt::{Display, Write};
use std::time::Duration;

impl Config {
    /// The configuration as TOML, every default written out. Secrets are not in it: of files with passwords it has the
    /// place, and of an address that may hold a secret the host.
    pub fn to_toml(&self) -> String {
        let mut out = Toml(String::new());
        out.key("listen", &list(&self.listen));
        out.key("data_dir", &text(self.data_dir.display()));
        out.key("default_registry", &text(&self.default_registry));
        out.key("platforms", &list(&self.platforms));
        out.section("disk");
        out.maybe("max", self.disk.max.map(|bytes| text(size_text(bytes))));
        out.key("min_free", &text(kept_text(self.disk.min_free)));
        out.key("expire_unused", &text(span_or_never(self.disk.expire_unused)));
        out.section("memory");
        out.key("max", &text(size_text(self.memory_max)));
        out.section("fetch");
        out.key("streams", &self.fetch.streams.to_string());
        out.key("connect_timeout", &text(span_text(self.fetch.connect_timeout)));
        out.key("header_timeout", &text(span_text(self.fetch.header_timeout)));
        out.key("stall_timeout", &text(span_text(self.fetch.stall_timeout)));
        out.key("bandwidth", &text(bandwidth_text(self.fetch.bandwidth)));
        out.key("early_ranges", &self.fetch.early_ranges.to_string());
        out.key("allow_networks", &list(&self.fetch.allow_networks));
        out.maybe("proxy", self.fetch.proxy.as_ref().map(|proxy| text(without_secrets(proxy.reveal()))));
        out.section("tags");
        out.key("revalidate", &text(span_text(self.tags.revalidate)));
        out.key("resolve_deadline", &text(span_text(self.tags.resolve_deadline)));
        out.key("fallback_versions", &self.tags.fallback_versions.to_string());
        out.key("history", &self.tags.history.to_string());
        self.tags.rules.iter().for_each(|rule| out.rule(rule));
        self.upstreams.iter().for_each(|upstream| out.upstream(upstream));
        if let Some(tls) = &self.tls {
            out.section("tls");
            out.key("cert_file", &text(tls.cert_file.display()));
            out.key("key_file", &text(tls.key_file.display()));
            out.maybe("client_ca_file", tls.client_ca_file.as_ref().map(|file| text(file.display())));
        }
        out.auth(&self.auth);
        if let Some(patterns) = &self.access_pull {
            out.section("access");
            out.key("pull", &list(patterns));
        }
        if let Some(warm) = &self.warm {
            out.section("warm");
            out.key("images", &list(&warm.images));
            out.key("every", &text(span_or_never(warm.every)));
        }
        if let Some(kit) = &self.kit {
            out.section("kit");
            out.key("secret_file", &text(kit.secret_file.display()));
            out.key("listen", &text(kit.listen));
            out.key("peers", &list(&kit.peers));
            out.key("mdns", &kit.mdns.to_string());
        }
        if let Some(alert) = &self.alert {
            out.section("alert");
            out.maybe("command", alert.command.as_ref().map(|command| list(&program_of(command.reveal()))));
            out.maybe("url", alert.url.as_ref().map(|url| text(without_secrets(url.reveal()))));
        }
        out.0
    }
}

/// A command without its arguments, any of which may be a secret. Stars stand for them.
fn program_of(command: &[String]) -> Vec<&str> {
    command.iter().enumerate().map(|(n, word)| if n == 0 { word.as_str() } else { "***" }).collect()
}

struct Toml(String);

impl Toml {
    fn section(&mut self, name: &str) {
        let _ = writeln!(self.0, "\n[{name}]");
    }

    fn key(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.0, "{name} = {value}");
    }

    fn maybe(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.key(name, &value);
        }
    }

    fn rule(&mut self, rule: &TagRule) {
        self.section("[tags.rule]");
        self.key("match", &text(&rule.pattern));
        self.maybe("revalidate", rule.revalidate.map(|span| text(span_text(span))));
        let word = |missing| if missing == OnMissing::Serve { "serve" } else { "pass" };
        self.maybe("on_missing", rule.on_missing.map(|missing| text(word(missing))));
        self.maybe("frozen", rule.frozen.map(|frozen| frozen.to_string()));
    }

    fn auth(&mut self, auth: &AuthSettings) {
        self.section("auth");
        self.maybe("htpasswd_file", auth.htpasswd_file.as_ref().map(|file| text(file.display())));
        self.key("pull_secrets", &auth.pull_secrets.to_string());
        self.key("offline_grace", &text(span_text(auth.offline_grace)));
        self.key("allow_plain_http", &auth.allow_plain_http.to_string());
        self.key("challenge_ping", &auth.challenge_ping.to_string());
        for rule in &auth.rules {
            self.section("[auth.rule]");
            self.key("user", &text(&rule.user));
            self.key("match", &text(&rule.pattern));
        }
    }

    fn upstream(&mut self, upstream: &UpstreamSettings) {
        self.section(&format!("upstream.{}", text(&upstream.name)));
        match upstream.access {
            UpstreamAccess::Public => self.key("access", &text("public")),
            UpstreamAccess::Private if upstream.is_private() => self.key("access", &text("private")),
            // Without a login everybody may read what it gives.
            UpstreamAccess::Private => {}
        }
        if let [only] = upstream.endpoints.as_slice() {
            self.endpoint(only);
            return;
        }
        for endpoint in &upstream.endpoints {
            self.section(&format!("[upstream.{}.endpoint]", text(&upstream.name)));
            self.endpoint(endpoint);
        }
    }

    fn endpoint(&mut self, endpoint: &EndpointSettings) {
        // A built-in address that is written down would be taken for one that its owner vouches for.
        let comment = if endpoint.url_configured { "" } else { "# built in: " };
        let _ = writeln!(self.0, "{comment}url = {}", text(&endpoint.url));
        self.maybe("prefix", endpoint.prefix.as_ref().map(text));
        if endpoint.send_ns {
            self.key("send_ns", "true");
        }
        self.maybe("ca_file", endpoint.ca_file.as_ref().map(|file| text(file.display())));
        if let Some(client) = &endpoint.client_certificate {
            self.key("client_cert_file", &text(client.cert_file.display()));
            self.key("client_key_file", &text(client.key_file.display()));
        }
        let realm = |realm: &String| if realm.contains('@') { without_secrets(realm) } else { realm.clone() };
        self.maybe("realm", endpoint.realm.as_ref().map(|of| text(realm(of))));
        if let Some(credentials) = &endpoint.credentials {
            self.key("username", &text(&credentials.username));
            self.key("password_file", &text(credentials.password_file.display()));
        }
    }
}

fn span_or_never(span: Option<Duration>) -> String {
    span.map_or("never".to_owned(), span_text)
}

/// A TOML basic string.
fn text(value: impl Display) -> String {
    let mut out = String::from("\"");
    for c in value.to_string().chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list<T: Display>(values: &[T]) -> String {
    format!("[{}]", values.iter().map(text).collect::<Vec<_>>().join(", "))
}
