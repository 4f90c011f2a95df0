//! What boards keep private: files for their owner alone, a login at an upstream, users; and the server in the test's own
//! process, for clients that no socket of this machine can be.

use super::{Board, Folder, without_spawning};
use larder::auth::Identity;
use larder::config::{Config, Options};
use larder::http::Server;
use larder::mirror::Mirror;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// The header of the user of [`secrets`]: "board" with the password "carry".
pub const BOARD: (&str, &str) = ("Authorization", "Basic Ym9hcmQ6Y2Fycnk=");
/// The same user with the password "wrong".
pub const WRONG: (&str, &str) = ("Authorization", "Basic Ym9hcmQ6d3Jvbmc=");

/// A file that only its owner may read.
pub fn private_file(folder: &Folder, name: &str, text: &str) -> PathBuf {
    let path = folder.0.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The part of a configuration that logs in at an upstream as "alice" with "s3cret", and the part with the user of the
/// board, whose hash has the least cost that bcrypt has.
pub fn secrets(folder: &Folder) -> (String, String) {
    let user = format!("board:{}\n", bcrypt::hash("carry", 4).unwrap());
    let (htpasswd, password) =
        (private_file(folder, "htpasswd", &user), private_file(folder, "password", "s3cret\n"));
    (
        format!("username = \"alice\"\npassword_file = \"{}\"\n", password.display()),
        format!("[auth]\nhtpasswd_file = \"{}\"\n", htpasswd.display()),
    )
}

/// A server in the test's own process.
pub struct InProcess {
    pub mirror: Arc<Mirror>,
    pub server: Arc<Server>,
    pub runtime: Runtime,
}

impl InProcess {
    /// Serves what `board` has, which is stopped.
    pub fn instead_of(board: &mut Board) -> InProcess {
        board.stop();
        let file = Some(board.folder().join("larder.toml"));
        let config =
            Config::load(&Options { file, data_dir: Some(board.data()), ..Options::default() }).unwrap();
        let upstreams = larder::fetch::Upstreams::new(&config).unwrap();
        let (store, startup) = without_spawning(|| larder::store::Store::open(&config.data_dir, 3)).unwrap();
        let mirror = Mirror::start(Arc::new(config), Arc::new(store), upstreams, startup).unwrap();
        let server = Arc::new(Server::new(Arc::clone(&mirror)).unwrap());
        InProcess { mirror, server, runtime: Runtime::new().unwrap() }
    }

    /// A connection: a stream that is no socket, and smaller than what goes over it.
    pub fn connect(&self, identity: &Identity) -> (DuplexStream, JoinHandle<()>) {
        let (client, stream) = tokio::io::duplex(1_000);
        let (server, identity) = (Arc::clone(&self.server), identity.clone());
        (client, self.runtime.spawn(async move { server.serve_stream(stream, identity).await }))
    }

    /// The whole answer to a GET with these header lines, each with its line end.
    pub fn get(&self, identity: &Identity, path: &str, headers: &str) -> Vec<u8> {
        let (mut client, served) = self.connect(identity);
        let request = format!("GET {path} HTTP/1.1\r\nhost: board\r\n{headers}connection: close\r\n\r\n");
        let mut answer = Vec::new();
        self.runtime.block_on(async {
            client.write_all(request.as_bytes()).await.unwrap();
            client.read_to_end(&mut answer).await.unwrap();
            served.await.unwrap();
        });
        answer
    }
}
