//! The socket that the server listens on: bound before the model is loaded, since that may take some time.

#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs},
    path::{Path, PathBuf},
};

use anyhow::Context;
use hymba::server::Listener;

use crate::cli::usage::Usage;

/// Maximum length of a socket's path: the system's `sun_path` without the terminating zero.
#[cfg(unix)]
const PATH_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// A bound socket that is not listening yet.
pub enum Socket {
    Tcp(Vec<TcpListener>),
    #[cfg(unix)]
    Unix(UnixListener, PathBuf),
}

impl Socket {
    /// Binds the Unix socket `unix`, or else `host` and `port`: beyond loopback only if access is `protected` by a key or
    /// explicitly open.
    pub fn bind(host: &str, port: u16, unix: Option<&Path>, protected: bool) -> anyhow::Result<Self> {
        if let Some(path) = unix {
            return Self::bind_unix(path);
        }
        let name = host.trim_matches(['[', ']']);
        if name.contains('/') || name.contains(':') && name.parse::<IpAddr>().is_err() {
            let what = format!("--host {host}: must be an address or a name only; use --port for the port");
            return Err(Usage(what).into());
        }
        let wanted = format!("{host}:{port}");
        let resolved = (name, port).to_socket_addrs();
        let mut addresses: Vec<SocketAddr> = resolved.with_context(|| format!("--host {host}"))?.collect();
        addresses.sort_unstable();
        addresses.dedup();
        if let Some(open) = addresses.iter().find(|address| !is_loopback(address.ip()))
            && !protected
        {
            let ip = open.ip().to_string();
            let address = if ip == name { ip } else { format!("{host} ({ip})") };
            let what = format!(
                "--host {address} is reachable from other machines; add --api-key-file, or --no-auth if anybody may use it"
            );
            return Err(Usage(what).into());
        }
        let mut listeners: Vec<TcpListener> = Vec::new();
        let mut failed = None;
        for mut address in addresses {
            if let (0, Some(first)) = (port, listeners.first()) {
                address.set_port(first.local_addr()?.port());
            }
            match TcpListener::bind(address) {
                Ok(listener) => listeners.push(listener),
                // A name such as localhost may resolve to an address that this machine does not have.
                Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => failed = Some(e),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                    anyhow::bail!(
                        "cannot listen on {wanted}: the port is in use; use another --port (0: any free port)"
                    )
                }
                Err(e) => return Err(e).context(format!("cannot listen on {wanted}")),
            }
        }
        match failed {
            Some(e) if listeners.is_empty() => Err(e).context(format!("cannot listen on {wanted}")),
            _ => Ok(Self::Tcp(listeners)),
        }
    }

    #[cfg(unix)]
    fn bind_unix(path: &Path) -> anyhow::Result<Self> {
        use std::os::unix::{fs::FileTypeExt, net::UnixStream};

        use rustix::{fs::Mode, process::umask};

        let doing = || format!("cannot listen on {}", path.display());
        let is_socket = fs::symlink_metadata(path).ok().map(|file| file.file_type().is_socket());
        match is_socket {
            None => {}
            Some(false) => anyhow::bail!("{}: the file exists and is not a socket; use another path", doing()),
            Some(true) => match UnixStream::connect(path) {
                Ok(_) => anyhow::bail!("{}: another server is listening on it", doing()),
                Err(_) => fs::remove_file(path).with_context(doing)?, // left by a killed server
            },
        }
        // No other thread is running that could create a file meanwhile.
        let before = umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        if bound.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput) {
            anyhow::bail!("{}: the path of a socket can have at most {PATH_BYTES} bytes; use a shorter one", doing());
        }
        Ok(Self::Unix(bound.with_context(doing)?, path.into()))
    }

    #[cfg(not(unix))]
    fn bind_unix(_path: &Path) -> anyhow::Result<Self> {
        Err(Usage("--unix: this system has no Unix sockets; use --host and --port".into()).into())
    }

    /// Returns the listeners, their address for messages, and a guard that removes the socket file.
    pub fn listeners(self) -> anyhow::Result<(Vec<Listener>, String, Option<Removed>)> {
        match self {
            Self::Tcp(listeners) => {
                let address = listeners.first().context("--host: no address")?.local_addr()?;
                let listen = |listener: TcpListener| {
                    listener.set_nonblocking(true)?;
                    Ok(Listener::Tcp(tokio::net::TcpListener::from_std(listener)?))
                };
                let listeners = listeners.into_iter().map(listen).collect::<io::Result<_>>()?;
                Ok((listeners, format!("http://{address}"), None))
            }
            #[cfg(unix)]
            Self::Unix(listener, path) => {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                let address = format!("the Unix socket {}", path.display());
                Ok((vec![Listener::Unix(listener)], address, Some(Removed(path))))
            }
        }
    }
}

/// Removes a file when dropped.
pub struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // no one needs it any more
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
