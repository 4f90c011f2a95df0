//! SOCKS5 proxies: what is asked of them, and what they are not asked for.

use crate::board::{Board, FETCH, Folder, PATIENCE, image, upstream_with};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A SOCKS5 proxy that connects to one upstream, whatever it is asked for, and writes down what that is.
struct Socks {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

/// User name and password.
type SocksLogin = Option<(&'static str, &'static str)>;

impl Socks {
    fn new(to: SocketAddr, login: SocksLogin) -> Socks {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socks = Socks { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let asked = socks.asked.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let asked = asked.clone();
                thread::spawn(move || converse(client, to, login, &asked));
            }
        });
        socks
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn read(client: &mut TcpStream, count: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn text(client: &mut TcpStream) -> Option<String> {
    let length = read(client, 1)?[0];
    String::from_utf8(read(client, length.into())?).ok()
}

/// RFC 1928 and RFC 1929, as the other side sees them.
fn converse(
    mut client: TcpStream,
    to: SocketAddr,
    login: SocksLogin,
    asked: &Mutex<Vec<String>>,
) -> Option<()> {
    let greeting = read(&mut client, 2)?;
    assert_eq!(greeting[0], 5);
    let methods = read(&mut client, greeting[1].into())?;
    let method = if login.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        return client.write_all(&[5, 0xff]).ok();
    }
    client.write_all(&[5, method]).ok()?;
    if let Some((user, password)) = login {
        assert_eq!(read(&mut client, 1)?, [1]);
        let is_right = (text(&mut client)?, text(&mut client)?) == (user.into(), password.into());
        client.write_all(&[1, u8::from(!is_right)]).ok()?;
        is_right.then_some(())?;
    }
    let request = read(&mut client, 4)?;
    assert_eq!(request[..3], [5, 1, 0]);
    let target = match request[3] {
        1 => read(&mut client, 4)?.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
        3 => text(&mut client)?,
        // It has no IPv6, and says so.
        _ => return client.write_all(&[5, 8, 0, 1, 0, 0, 0, 0, 0, 0]).ok(),
    };
    let port = u16::from_be_bytes(read(&mut client, 2)?.try_into().unwrap());
    asked.lock().unwrap().push(format!("{target}:{port}"));
    let Ok(onward) = TcpStream::connect(to) else {
        return client.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).ok();
    };
    client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 80]).ok()?;
    let (mut from, mut back) = (client.try_clone().unwrap(), onward.try_clone().unwrap());
    thread::spawn(move || std::io::copy(&mut from, &mut &onward));
    std::io::copy(&mut back, &mut client).ok().map(drop)
}

fn assert_from_upstream(board: &Board, registry: &str) {
    let answer = board.head(&format!("/v2/lab/app/manifests/latest?ns={registry}"));
    let from = answer.header("cache-status").unwrap_or_default();
    assert!(answer.status == 200 && from.contains("upstream"), "{} {from}\n{}", answer.status, board.log());
}

fn with_proxy(proxy: &str) -> String {
    format!("{FETCH}proxy = \"{proxy}\"\n")
}

#[test]
fn the_name_goes_to_the_proxy_or_its_address_does() {
    for (scheme, expected) in
        [("socks5h", "localhost:5999"), ("socks5", "127.0.0.1:5999"), ("socks", "127.0.0.1:5999")]
    {
        let upstream = upstream_with(&image(1));
        let socks = Socks::new(upstream.addr(), None);
        let proxy = with_proxy(&format!("{scheme}://{}", socks.address));
        let board = Board::with_url("http://localhost:5999", &proxy);
        assert_from_upstream(&board, "docker.io");
        board.pull("lab/app", "latest").unwrap();
        // Where the board's resolver has an address of IPv6 too, the proxy has refused that one.
        assert!(socks.asked().iter().all(|asked| asked == expected), "{scheme}: {:?}", socks.asked());
        assert!(board.log().lines().all(|line| !line.contains("WARN")), "{}", board.log());
    }
}

#[test]
fn the_environment_names_it_and_who_logs_in() {
    let upstream = upstream_with(&image(1));
    let socks = Socks::new(upstream.addr(), Some(("us er", "p:w")));
    let right = format!("socks5h://us%20er:p%3Aw@{}", socks.address);
    for name in ["ALL_PROXY", "all_proxy", "HTTP_PROXY"] {
        let environment = vec![(name, right.clone())];
        let config = Board::config("http://registry.test", "");
        let board =
            Board::in_folder(Folder::new(), &config, environment).unwrap_or_else(|(log, _)| panic!("{log}"));
        assert_from_upstream(&board, "docker.io");
        assert_eq!(socks.asked().pop().as_deref(), Some("registry.test:80"), "{name}");
    }
    for (wrong, why) in [
        (format!("socks5h://us%20er:no@{}", socks.address), "does not accept the user name"),
        (format!("socks5h://{}", socks.address), "asks for a user name"),
    ] {
        let before = socks.asked().len();
        let board = Board::with_url("http://registry.test", &with_proxy(&wrong));
        let answer = board.get("/v2/lab/app/manifests/latest?ns=docker.io");
        assert!(answer.status >= 500, "{}", answer.status);
        let said = String::from_utf8(answer.body().unwrap()).unwrap();
        assert!(said.contains(why) && !said.contains("us%20er"), "{said}");
        assert_eq!(socks.asked().len(), before);
    }
}

#[test]
fn a_proxy_does_not_lead_where_the_board_does_not_go() {
    let upstream = upstream_with(&image(1));
    let socks = Socks::new(upstream.addr(), None);
    for (scheme, registry) in [("socks5h", "ghcr.io"), ("socks5", "ghcr.io")] {
        let redirect = larder::demo::upstream::Behaviour::RedirectTo("http://169.254.169.254/latest".into());
        upstream.clear();
        upstream.on(None, "/manifests/elsewhere", redirect);
        let more = format!(
            "{}[upstream.\"{registry}\"]\nurl = \"http://127.0.0.1:5999\"\n",
            with_proxy(&format!("{scheme}://{}", socks.address))
        );
        let board = Board::with_url("http://127.0.0.1:5998", &more);
        assert_from_upstream(&board, registry);
        let refused = board.get(&format!("/v2/lab/app/manifests/elsewhere?ns={registry}"));
        let said = String::from_utf8(refused.body().unwrap()).unwrap();
        assert!(said.contains("refused to connect"), "{scheme}: {said}");
        assert!(socks.asked().iter().all(|asked| !asked.contains("169.254")), "{:?}", socks.asked());
        assert_from_upstream(&board, registry);
    }
}

#[test]
fn a_proxy_that_is_gone_is_an_outage() {
    let upstream = upstream_with(&image(1));
    let socks = Socks::new(upstream.addr(), None);
    let board = Board::with_url("http://registry.test", &with_proxy(&format!("socks5h://{}", socks.address)));
    board.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    let (status, from, took) = board.ask("lab/app", "latest");
    assert!(status == 200 && from.contains("last-complete") && took < PATIENCE, "{status} {from}");
    upstream.come_back().unwrap();
    board.wait_until_up("lab/app", "latest");
}
