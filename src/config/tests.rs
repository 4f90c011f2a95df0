//! The configuration's promises: every key is taken, every slip is named.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const CANONICAL: &str = include_str!("../../firmware-config/larder.toml");

fn parse(text: &str) -> Result<Config, String> {
    parse_with(text, &Options::default(), &[("HOME", "/home/larder")])
}

fn parse_with(text: &str, options: &Options, environment: &[(&str, &str)]) -> Result<Config, String> {
    let look =
        |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Config::parse(text, "larder.toml", options, &look).map_err(|e| e.to_string())
}

/// The canonical file with every key in force: each comment that hides a key or a section is taken away.
fn uncommented() -> String {
    let shown = CANONICAL.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest,
        _ => line,
    });
    shown.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_canonical_file_changes_nothing() {
    let (written, default) = (parse(CANONICAL).unwrap(), parse("").unwrap());
    assert_eq!(written.to_toml(), default.to_toml());
}

#[test]
fn the_canonical_file_shows_the_defaults() {
    let mut wanted: toml::Table = parse("").unwrap().to_toml().parse().unwrap();
    let shown: toml::Table = uncommented().parse().unwrap();
    wanted.remove("upstream");
    // What depends on the board or on who runs larder.
    wanted.insert("platforms".into(), shown["platforms"].clone());
    wanted.insert("data_dir".into(), shown["data_dir"].clone());
    for (section, value) in wanted {
        match value {
            toml::Value::Table(keys) => {
                for (key, value) in keys {
                    assert_eq!(shown[&section].get(&key), Some(&value), "[{section}] {key}");
                }
            }
            value => assert_eq!(shown[&section], value, "{section}"),
        }
    }
}

#[test]
fn the_canonical_file_shows_every_key() {
    // Where a key is missing from the file, taking it out of the schema's own list shows it.
    let shown: toml::Table = uncommented().parse().unwrap();
    for (section, keys) in [
        ("disk", &["max", "min_free", "expire_unused"][..]),
        ("memory", &["max"]),
        (
            "fetch",
            &[
                "streams",
                "connect_timeout",
                "header_timeout",
                "stall_timeout",
                "bandwidth",
                "early_ranges",
                "allow_networks",
                "proxy",
            ],
        ),
        ("tags", &["revalidate", "resolve_deadline", "fallback_versions", "history", "rule"]),
        ("tls", &["cert_file", "key_file", "client_ca_file"]),
        (
            "auth",
            &["htpasswd_file", "pull_secrets", "offline_grace", "allow_plain_http", "challenge_ping", "rule"],
        ),
        ("access", &["pull"]),
        ("warm", &["images", "every"]),
        ("kit", &["secret_file", "listen", "peers", "mdns"]),
        ("alert", &["command", "url"]),
    ] {
        let probe = format!("[{section}]\nno_such_key = 1");
        let known = parse(&probe).unwrap_err();
        for key in keys {
            assert!(shown[section].get(key).is_some(), "[{section}] {key} is not in the file");
        }
        assert!(known.contains("no_such_key"), "{known}");
        let count = known.split("known here: ").nth(1).map_or(0, |list| list.split(", ").count());
        assert!(
            count == 0 || count == keys.len(),
            "[{section}] has keys that this test does not know: {known}"
        );
    }
    let upstream = &shown["upstream"]["registry.example.org"];
    for key in [
        "url",
        "prefix",
        "send_ns",
        "ca_file",
        "client_cert_file",
        "client_key_file",
        "realm",
        "username",
        "password_file",
        "access",
    ] {
        assert!(upstream.get(key).is_some(), "upstream {key} is not in the file");
    }
    let several = shown["upstream"]["registry.k8s.io"]["endpoint"].as_array().unwrap();
    assert!(several.len() > 1, "several endpoints are not in the file");
}

#[test]
fn what_is_printed_loads_to_the_same() {
    let dir = std::env::temp_dir().join(format!("larder-config-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let secret = dir.join("password");
    fs::write(&secret, "s3cret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let shared = dir.join("kit.secret");
    fs::write(&shared, "0123456789abcdef\n").unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o600)).unwrap();
    let text = uncommented()
        .replace("/etc/larder/password", &secret.display().to_string())
        .replace("/etc/larder/kit.secret", &shared.display().to_string());
    let config = parse(&text).unwrap();
    assert_eq!(config.upstreams.iter().filter(|u| u.is_private()).count(), 1);
    let printed = config.to_toml();
    assert!(!printed.contains("s3cret"), "a password was printed");
    assert!(!format!("{printed}{config:?}").contains("0123456789"), "the kit's secret was printed");
    assert_eq!(parse(&printed).unwrap().to_toml(), printed);
    // The login that only lifts a rate limit needs no users; that is printed, and read again.
    let login = format!("username = \"board\"\npassword_file = {secret:?}\n");
    let of = |access: &str| parse(&format!("[upstream.\"docker.io\"]\n{login}{access}"));
    assert!(of("").unwrap_err().contains("if they only lift a rate limit, set access = \"public\""));
    assert!(of("access = \"private\"\n").unwrap_err().contains("[auth] is missing"));
    let lifted = of("access = \"public\"\n").unwrap();
    assert!(!lifted.upstreams.iter().any(UpstreamSettings::is_private));
    assert_eq!(lifted.upstreams.iter().filter(|upstream| upstream.lifts_limit()).count(), 1);
    let printed = lifted.to_toml();
    assert!(printed.contains("access = \"public\"") && parse(&printed).unwrap().to_toml() == printed);
    // A certificate alone makes nothing private, unless that is written.
    let certificate = format!("client_cert_file = {secret:?}\nclient_key_file = {secret:?}\n");
    let of = |access: &str| parse(&format!("[upstream.\"ghcr.io\"]\n{certificate}{access}"));
    let shown = of("").unwrap();
    assert!(shown.upstreams.iter().all(|upstream| !upstream.is_private() && !upstream.lifts_limit()));
    let printed = shown.to_toml();
    assert!(printed.contains("client_key_file") && parse(&printed).unwrap().to_toml() == printed);
    assert!(of("access = \"private\"\n").unwrap_err().contains("[auth] is missing"));
    let private = of("access = \"private\"\n[auth]\npull_secrets = true\n").unwrap();
    assert_eq!(private.upstreams.iter().filter(|upstream| upstream.is_private()).count(), 1);
    assert_eq!(parse(&private.to_toml()).unwrap().to_toml(), private.to_toml());
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(parse(&text).unwrap_err().contains("can be read by everybody; chmod 640"));
    fs::write(&secret, "\n").unwrap();
    assert!(parse(&text).unwrap_err().contains("is empty"));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn slips_are_named() {
    for (text, message) in [
        (
            "[tags]\nrevaldate = \"1s\"",
            "larder.toml:2: unknown key \"revaldate\"; did you mean \"revalidate\"?",
        ),
        (
            "[upstream.\"docker.io\"]\naccess = \"all\"",
            "larder.toml:2: unknown variant `all`, expected `private` or `public`",
        ),
        (
            "[upstream.\"docker.io\"]\naccess = \"private\"",
            "larder.toml: [upstream.\"docker.io\"] has access = \"private\" and no username: without a login everybody may read what it gives",
        ),
        ("\n\nlisen = []", "larder.toml:3: unknown key \"lisen\"; did you mean \"listen\"?"),
        ("[memory]\nzzzzzz = 1", "larder.toml:2: unknown key \"zzzzzz\"; known here: max"),
        (
            "[fetch]\nstall_timeout = \"soon\"",
            "larder.toml:2: invalid value: string \"soon\", expected a duration such as \"20s\" or \"1500ms\"",
        ),
        (
            "[disk]\nmin_free = \"8 gigs\"",
            "larder.toml:2: invalid value: string \"8 gigs\", expected a size such as \"8GiB\" or \"512MiB\", or a part of the file system such as \"20%\"",
        ),
        ("[fetch]\nstreams = 0", "larder.toml: fetch.streams is 0, expected 1 to 64"),
        ("[tags]\nhistory = 65", "larder.toml: tags.history is 65, expected 0 to 64"),
        (
            "[tags]\nresolve_deadline = \"0s\"",
            "larder.toml: tags.resolve_deadline is 0s, expected 1ms to 20s",
        ),
        ("[memory]\nmax = \"1MiB\"", "larder.toml: memory.max is 1MiB, expected 16MiB to 64GiB"),
        (
            "default_registry = \"example.org\"",
            "larder.toml: default_registry example.org is not one of the upstreams",
        ),
        (
            "platforms = [\"linux\"]",
            "larder.toml:1: platform \"linux\" is not of the form linux/arm64 or linux/arm/v7",
        ),
        (
            "platforms = [\"linux/arm64\", \"linux/aarch64\"]",
            "larder.toml: platforms names linux/arm64 twice",
        ),
        (
            "[upstream.\"docker.io\"]\nurl = \"ftp://x\"",
            "larder.toml: [upstream.\"docker.io\"] url is \"ftp://x\", expected https://HOST or http://HOST",
        ),
        (
            "[upstream.\"docker.io\"]\nusername = \"u\"",
            "larder.toml: [upstream.\"docker.io\"] has a username and no password_file",
        ),
        (
            "[fetch]\nconnect_timeout = \"20s\"\nheader_timeout = \"20s\"",
            "larder.toml: fetch.connect_timeout and fetch.header_timeout together must stay below 25s, or clients give up first",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), message);
    }
}

#[test]
fn an_upstream_may_have_several_endpoints() {
    let config = parse(
        "[[upstream.\"docker.io\".endpoint]]\nurl = \"https://mirror.lan/art\"\nprefix = \"/hub/proxy/\"\n\
         [[upstream.\"docker.io\".endpoint]]\nurl = \"http://10.0.0.2:5000\"\nsend_ns = true\n\
         [upstream.\"quay.io\"]\nurl = \"https://harbor.lan\"\nprefix = \"quay\"",
    )
    .unwrap();
    let upstream = config.upstream(&"docker.io".parse().unwrap()).unwrap();
    let [first, second] = upstream.endpoints.as_slice() else { panic!("there are two") };
    assert_eq!(first.prefix.as_ref().unwrap().to_string(), "hub/proxy");
    assert!(!first.send_ns && second.send_ns && second.prefix.is_none() && second.url_configured);
    assert_eq!(
        (first.label(), second.label()),
        ("mirror.lan:443/art/v2/hub/proxy".into(), "10.0.0.2:5000".into())
    );
    assert_eq!(upstream.outage_note(0), "down/docker.io");
    assert_eq!(upstream.outage_note(1), "down/docker.io/10.0.0.2:5000");
    // Clients that ask the registry itself are not sent to where it has other names.
    assert_eq!(upstream.origin().url, "https://registry-1.docker.io");
    let again = parse(&config.to_toml()).unwrap();
    assert_eq!(again.to_toml(), config.to_toml());
    assert!(
        config.to_toml().contains("[[upstream.\"docker.io\".endpoint]]\nurl = \"https://mirror.lan/art\"")
    );
    let quay = again.upstream(&"quay.io".parse().unwrap()).unwrap();
    assert_eq!(quay.endpoints[0].label(), "harbor.lan:443/v2/quay");
}

#[test]
fn endpoints_that_make_no_sense_are_refused() {
    let table = |keys: &str| format!("[[upstream.\"docker.io\".endpoint]]\n{keys}\n");
    let one = table("url = \"https://a\"");
    for (text, part) in [
        (format!("[upstream.\"docker.io\"]\nurl = \"https://b\"\n{one}"), "keys of a single endpoint"),
        (format!("[upstream.\"docker.io\"]\nsend_ns = true\n{one}"), "keys of a single endpoint"),
        ("[upstream.\"docker.io\"]\nendpoint = []".into(), "has 0 endpoint tables, expected 1 to 8"),
        (one.repeat(9), "has 9 endpoint tables, expected 1 to 8"),
        (one.repeat(2), "number 2 has the url and the prefix of number 1"),
        (table("prefix = \"p\""), "number 1 has no url"),
        (table("url = \"https://a\"\naccess = \"public\""), "belong to [upstream.\"docker.io\"] as a whole"),
        (table("url = \"https://a\"\nusername = \"u\""), "number 1 has a username and no password_file"),
        (table("url = \"https://a\"\nprefix = \"v2/hub\""), "expected what follows /v2/"),
        (table("url = \"https://a\"\nprefix = \"Hub\""), "number 1 prefix: "),
        (table("url = \"https://a\"\nprefix = \"a?b\""), "number 1 prefix: "),
        (table("url = \"https://a\"\nsend-ns = true"), "did you mean \"send_ns\"?"),
        ("[upstream.\"docker.io\"]\naccess = \"private\"".into(), "and no username"),
    ] {
        let problem = parse(&text).unwrap_err();
        assert!(problem.contains(part), "{text}: {problem}");
    }
}

#[test]
fn credentials_need_logins_and_a_safe_way() {
    let dir = std::env::temp_dir().join(format!("larder-creds-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let secret = dir.join("password");
    fs::write(&secret, "s3cret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let text = |url: &str, auth: &str| {
        let file = secret.display();
        format!(
            "[upstream.\"r.example\"]\nurl = \"{url}\"\nusername = \"u\"\npassword_file = \"{file}\"\n{auth}"
        )
    };
    let auth = "[auth]\nhtpasswd_file = \"/etc/larder/htpasswd\"";
    assert!(parse(&text("https://r.example", "")).unwrap_err().contains("[auth] is missing"));
    assert!(parse(&text("https://r.example", "[auth]\npull_secrets = true")).is_ok());
    assert!(parse(&text("http://r.example", auth)).unwrap_err().contains("over plain http"));
    assert!(parse(&text("http://127.0.0.1:5001", auth)).is_ok());
    let config = parse(&text("https://r.example", auth)).unwrap();
    assert_eq!(
        config.upstream(&"r.example".parse().unwrap()).unwrap().endpoints[0]
            .credentials
            .as_ref()
            .unwrap()
            .password
            .reveal(),
        "s3cret"
    );
    fs::remove_dir_all(&dir).unwrap();
}

/// A folder with a file of a secret, and the keys of a login and of a client certificate that name it.
fn keys_of_an_endpoint(name: &str) -> (PathBuf, String, String) {
    let dir = std::env::temp_dir().join(format!("larder-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let secret = dir.join("secret");
    fs::write(&secret, "s3cret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let login = format!("username = \"u\"\npassword_file = {secret:?}\n");
    let certificate = format!("client_cert_file = {secret:?}\nclient_key_file = {secret:?}\n");
    (dir, login, certificate)
}

#[test]
fn a_public_login_and_a_client_certificate_do_not_go_together() {
    let (dir, login, certificate) = keys_of_an_endpoint("both");
    let (open, closed) = ("access = \"public\"\n", "[auth]\npull_secrets = true\n");
    let table = |host: &str, keys: &str| {
        format!("[[upstream.\"docker.io\".endpoint]]\nurl = \"https://{host}\"\n{keys}")
    };
    let several = table("a.lan", &certificate) + &table("b.lan", &login);
    for text in [
        format!("[upstream.\"docker.io\"]\n{login}{certificate}{open}"),
        format!("[upstream.\"docker.io\"]\n{open}{several}"),
        format!("[upstream.\"docker.io\"]\n{open}{}", table("a.lan", &(login.clone() + &certificate))),
    ] {
        let problem = parse(&text).unwrap_err();
        let told = "has a username, a client_cert_file and access = \"public\"";
        assert!(problem.contains("[upstream.\"docker.io\"]") && problem.contains(told), "{problem}");
    }
    // Any two of the three make sense, and another registry is another.
    for text in [
        format!("{several}{closed}"),
        format!("[upstream.\"docker.io\"]\n{open}{}", table("a.lan", &certificate)),
        format!("[upstream.\"docker.io\"]\n{open}{}", table("a.lan", &login)),
        format!("[upstream.\"docker.io\"]\n{login}{open}[upstream.\"ghcr.io\"]\n{certificate}"),
    ] {
        parse(&text).unwrap();
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn no_section_of_another_name_is_dropped_that_says_who_may_read() {
    let (dir, login, certificate) = keys_of_an_endpoint("names");
    let auth = "[auth]\npull_secrets = true\n";
    let tables = format!("[[upstream.\"index.docker.io\".endpoint]]\nurl = \"https://a.lan\"\n{login}");
    let section = |name: &str, keys: &str| format!("[upstream.\"{name}\"]\n{keys}");
    for (dropped, kept, text) in [
        ("index.docker.io", "docker.io", section("index.docker.io", &login)),
        ("index.docker.io", "docker.io", section("index.docker.io", &certificate)),
        ("registry-1.docker.io", "docker.io", section("registry-1.docker.io", "access = \"public\"\n")),
        ("index.docker.io", "docker.io", tables),
        ("ghcr.io:443", "ghcr.io", section("ghcr.io:443", &login)),
    ] {
        let problem = parse(&format!("{text}{}{auth}", section(kept, ""))).unwrap_err();
        for part in
            [format!("[upstream.\"{dropped}\"]"), format!("[upstream.\"{kept}\"]"), "one section".into()]
        {
            assert!(problem.contains(&part), "{part}: {problem}");
        }
        // What is kept may have a login, and alone the other name is as good.
        parse(&format!("{}{}{auth}", section(dropped, ""), section(kept, &login))).unwrap();
        parse(&format!("{text}{auth}")).unwrap();
    }
    // None of the two has the plain name: the first one is kept.
    let both = section("index.docker.io", "") + &section("registry-1.docker.io", &login) + auth;
    let problem = parse(&both).unwrap_err();
    assert!(problem.contains("index.docker.io") && problem.contains("registry-1.docker.io"), "{problem}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_kit_needs_a_secret_that_is_one() {
    let dir = std::env::temp_dir().join(format!("larder-kit-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let secret = dir.join("secret");
    let text = |more: &str| format!("[kit]\nsecret_file = \"{}\"\n{more}", secret.display());
    assert!(parse(&text("")).unwrap_err().contains("kit.secret_file"));
    fs::write(&secret, " 0123456789abcde \n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    let short = parse(&text("")).unwrap_err();
    assert!(short.contains("holds 15 bytes, expected at least 16; `openssl rand -hex 32`"), "{short}");
    fs::write(&secret, "0123456789abcdef\n").unwrap();
    let config = parse(&text("")).unwrap();
    assert_eq!(config.not_yet(), Vec::<&str>::new());
    assert_eq!(config.kit.unwrap().secret.reveal(), b"0123456789abcdef");
    assert_eq!(parse(&text("mdns = true")).unwrap().not_yet(), ["kit.mdns"]);
    let twice = parse(&text("peers = [\"10.0.0.2:5002\", \"10.0.0.2:5002\"]")).unwrap_err();
    assert!(twice.contains("kit.peers names 10.0.0.2:5002 twice"), "{twice}");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(parse(&text("")).unwrap_err().contains("can be read by everybody; chmod 640"));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn no_text_made_of_a_configuration_has_a_secret_in_it() {
    for (text, shown) in [
        ("[fetch]\nproxy = \"larder:s3cret@proxy.example:3128\"", "proxy = \"***@proxy.example:3128\""),
        ("[fetch]\nproxy = \"http://larder:s3cret@proxy.example\"", "proxy = \"http://***@proxy.example\""),
        ("[alert]\nurl = \"https://hooks.example/T0/s3cret\"", "url = \"https://hooks.example/***\""),
        (
            "[alert]\ncommand = [\"/bin/notify\", \"--token\", \"s3cret\"]",
            "command = [\"/bin/notify\", \"***\", \"***\"]",
        ),
        (
            "[upstream.\"a.example\"]\nrealm = \"https://larder:s3cret@auth.example\"",
            "realm = \"https://***@auth.example\"",
        ),
    ] {
        let config = parse(text).unwrap();
        assert!(config.to_toml().contains(shown), "{}", config.to_toml());
        assert!(!format!("{}{config:?}", config.to_toml()).contains("s3cret"), "{text}");
    }
    let wrong = parse("[upstream.\"a.example\"]\nurl = \"https://larder:s3cret@a.example\"").unwrap_err();
    assert!(wrong.contains("***@a.example") && !wrong.contains("s3cret"), "{wrong}");
}

#[test]
fn networks_that_may_be_allowed_reach_neither_the_board_nor_its_links() {
    let parsed = |text: &str| parse(&format!("[fetch]\nallow_networks = [{text}]"));
    let shown = parsed("\"198.18.0.0/15\", \"10.1.2.3/8\", \"fd00::/8\"").unwrap().to_toml();
    assert!(shown.contains("allow_networks = [\"198.18.0.0/15\", \"10.0.0.0/8\", \"fd00::/8\"]"), "{shown}");
    for never in [
        "127.0.0.1/32",
        "0.0.0.0/0",
        "169.254.1.0/24",
        "224.0.0.0/4",
        "::/0",
        "::1/128",
        "fe80::/64",
        "::ffff:127.0.0.0/104",
        "64:ff9b::7f00:0/104",
        "2002:7f00::/24",
        "ff02::1/128",
    ] {
        let refused = parsed(&format!("\"{never}\"")).unwrap_err();
        assert!(refused.contains("reaches this board itself"), "{never}: {refused}");
    }
    for nonsense in ["198.18.0.0", "198.18.0.0/33", "example.org/8", "10.0.0/8"] {
        let refused = parsed(&format!("\"{nonsense}\"")).unwrap_err();
        assert!(refused.contains("is no network such as"), "{nonsense}: {refused}");
    }
    assert!(parsed(&vec!["\"10.0.0.0/8\""; 65].join(",")).unwrap_err().contains("at most 64"));
}

#[test]
fn the_data_folder_is_found_in_order() {
    let options = Options { data_dir: Some("/cli".into()), ..Options::default() };
    let all = [("STATE_DIRECTORY", "/systemd:/other"), ("XDG_STATE_HOME", "/xdg"), ("HOME", "/home/larder")];
    let text = "data_dir = \"/file\"";
    assert_eq!(parse_with(text, &options, &all).unwrap().data_dir, PathBuf::from("/cli"));
    assert_eq!(parse_with(text, &Options::default(), &all).unwrap().data_dir, PathBuf::from("/systemd"));
    assert_eq!(parse_with(text, &Options::default(), &all[1..]).unwrap().data_dir, PathBuf::from("/file"));
    let default = parse_with("", &Options::default(), &all[1..]).unwrap().data_dir;
    let expected = if rustix::process::geteuid().is_root() { "/var/lib/larder" } else { "/xdg/larder" };
    assert_eq!(default, PathBuf::from(expected));
}

#[test]
fn a_user_lays_over_what_is_built_in() {
    let config =
        parse("[upstream.\"docker.io\"]\nca_file = \"/ca.pem\"\n[upstream.\"a.example\"]\n").unwrap();
    let only = |name: &str| config.upstream(&name.parse().unwrap()).unwrap().endpoints[0].clone();
    let hub = only("docker.io");
    assert_eq!((hub.url.as_str(), hub.url_configured), ("https://registry-1.docker.io", false));
    let own = only("a.example");
    assert_eq!((own.url.as_str(), own.url_configured), ("https://a.example", false));
    let linuxserver = only("lscr.io");
    assert_eq!(linuxserver.realm.as_deref(), Some("https://ghcr.io"));
    assert_eq!(config.upstreams.len(), 10);
}

#[test]
fn the_first_rule_that_matches_wins() {
    let text = "[tags]\nrevalidate = \"1s\"\n[[tags.rule]]\nmatch = \"*:1.*\"\nrevalidate = \"24h\"\n\
                [[tags.rule]]\nmatch = \"*\"\nfrozen = true\non_missing = \"serve\"";
    let tags = parse(text).unwrap().tags;
    let repository: Repository = "docker.io/library/nginx".parse().unwrap();
    let policy = |tag: &str| tags.policy(&repository, &tag.parse().unwrap());
    let day = Duration::from_secs(86_400);
    assert_eq!(policy("1.25"), TagPolicy { revalidate: day, on_missing: OnMissing::Pass, frozen: false });
    let second = Duration::from_secs(1);
    assert_eq!(
        policy("latest"),
        TagPolicy { revalidate: second, on_missing: OnMissing::Serve, frozen: true }
    );
}

#[test]
fn stars_stand_for_any_text() {
    assert!(matches("docker.io/library/*:1.*", "docker.io/library/nginx:1.25"));
    assert!(!matches("docker.io/library/*:1.*", "docker.io/library/nginx:2.1"));
    assert!(matches("*", "anything"));
    assert!(matches("a*b*c", "abc") && matches("a*b*c", "a-b-b-c") && !matches("a*b*c", "acb"));
    assert!(matches("exact", "exact") && !matches("exact", "exactly"));
    assert!(!matches("ab*ba", "aba"));
}

#[test]
fn an_endpoint_has_a_name_and_its_outage_a_note() {
    let text = |url: &str| format!("[upstream.\"a.example\"]\nurl = \"{url}\"");
    let upstream =
        |url: &str| parse(&text(url)).unwrap().upstream(&"a.example".parse().unwrap()).unwrap().clone();
    for (url, name) in [
        ("https://a.example", "a.example:443"),
        ("http://a.example/prefix", "a.example:80"),
        ("https://a.example:5000/prefix", "a.example:5000"),
        ("http://[::1]", "[::1]:80"),
        ("http://[::1]:5000", "[::1]:5000"),
    ] {
        assert_eq!(upstream(url).endpoints[0].host_port(), name);
    }
    let mut several = upstream("https://a.example");
    several.endpoints.push(upstream("http://b.example").endpoints[0].clone());
    assert_eq!(
        (several.outage_note(0).as_str(), several.outage_note(1).as_str()),
        ("down/a.example", "down/a.example/b.example:80")
    );
}

#[test]
fn familiar_names_are_spelled_out() {
    let text = "default_registry = \"index.docker.io\"\n[access]\npull = [\"alpine\", \"ghcr.io/owner/*\"]\n\
        [warm]\nimages = [\"docker://alpine\"]\n[[auth.rule]]\nuser = \"kit\"\nmatch = \"docker.io/alpine\"\n\
        [[tags.rule]]\nmatch = \"alpine:3.20\"\nfrozen = true\n\
        [upstream.\"registry-1.docker.io\"]\nurl = \"https://mirror.lan\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.default_registry.as_str(), "docker.io");
    let alpine: Repository = "docker.io/library/alpine".parse().unwrap();
    let away = "10.0.0.7".parse().unwrap();
    assert!(config.may_fetch(away, &alpine));
    assert!(!config.may_fetch(away, &"docker.io/owner/app".parse().unwrap()));
    assert_eq!(config.warm.unwrap().images[0].repository, alpine);
    assert!(config.auth.may_read("kit", &alpine.to_string()));
    assert!(config.tags.policy(&alpine, &"3.20".parse().unwrap()).frozen);
    assert!(!config.tags.policy(&alpine, &"3.21".parse().unwrap()).frozen);
    let url =
        |config: &Config| config.upstream(&"docker.io".parse().unwrap()).unwrap().endpoints[0].url.clone();
    assert_eq!(url(&parse(text).unwrap()), "https://mirror.lan");
    let both = format!("{text}[upstream.\"docker.io\"]\nurl = \"https://hub.lan\"\n");
    assert_eq!(url(&parse(&both).unwrap()), "https://hub.lan", "the plain name counts");
}
