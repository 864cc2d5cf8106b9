//! Pulls over TLS, with generated certificates, and through proxies.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer};

use crate::{
    QUICK, SMALL,
    common::{fails, succeeds, text},
    hub::{Fault, REPO, Side, TestHub, World, checkpoint, commit},
};

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Returns a hub with the model, and a certificate for `host` that is valid until `year`.
    fn hub(&self, host: &str, year: i32) -> World {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        let world = World::with_hub(TestHub::start_tls(Arc::new(config.unwrap())));
        commit(&world.hub, REPO, &checkpoint(SMALL));
        world
    }

    /// Writes the authority's certificate to a file.
    fn file(&self, world: &World) -> PathBuf {
        let path = world.dir.path().join("ca.pem");
        fs::write(&path, self.0.pem()).unwrap();
        path
    }

    /// Returns a pull that trusts this authority.
    fn pull(&self, world: &World) -> Command {
        let mut pull = world.hymba(QUICK);
        pull.env("SSL_CERT_FILE", self.file(world));
        pull
    }
}

#[test]
fn certificates_are_verified() {
    let (ours, other) = (Authority::new("ours"), Authority::new("another"));
    let world = ours.hub("127.0.0.1", 4000);
    fails(&mut other.pull(&world), 1, &["is from an unknown authority", "SSL_CERT_FILE"]);
    fails(&mut world.hymba(QUICK), 1, &["certificate", "SSL_CERT_FILE"]); // with the system's certificates
    let none = world.dir.path().join("none.pem");
    fails(world.hymba(QUICK).env("SSL_CERT_FILE", none), 1, &["no CA certificates found", "none.pem"]);
    assert!(world.hub.requests().is_empty() && !world.cache().exists());

    // The token is only sent to the hub, and redirects from https to http are refused.
    world.hub.gate(REPO, "hf_right");
    world
        .hub
        .on(|r| if r.method == "HEAD" { Fault::Header("Location", Some("http://a/".into())) } else { Fault::None });
    fails(ours.pull(&world).env("HF_TOKEN", "hf_right"), 1, &["redirects to an invalid address"]);
    world.hub.on(|_| Fault::None);
    world.hub.forget_requests();
    succeeds(ours.pull(&world).env("HF_TOKEN", "hf_right"));
    assert!(world.installed("f16").exists());
    let requests = world.hub.requests();
    assert!(requests.iter().any(|r| r.side == Side::Cdn));
    assert!(requests.iter().all(|r| r.header("authorization").is_some() == (r.side == Side::Hub)), "{requests:?}");

    let world = ours.hub("127.0.0.1", 2020);
    fails(&mut ours.pull(&world), 1, &["certificate has expired"]);
    let world = ours.hub("hub.example", 4000);
    fails(&mut ours.pull(&world), 1, &["certificate is for another host"]);
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let https = format!("https://{}", plain.local_addr().unwrap());
    thread::spawn(move || {
        let (mut client, _) = plain.accept().unwrap();
        client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        io::copy(&mut client, &mut io::sink())
    });
    fails(ours.pull(&world).env("HF_ENDPOINT", https), 1, &["does not speak TLS"]);
}

/// A CONNECT proxy.
struct Proxy {
    address: String,
    /// Received requests with their headers.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, requests) = (listener.local_addr().unwrap().to_string(), Arc::<Mutex<Vec<_>>>::default());
        let log = requests.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let log = log.clone();
                thread::spawn(move || drop(relay(client, &log)));
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Connects `client` to the address in its request.
fn relay(mut client: TcpStream, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    log.lock().unwrap().push(head.clone());
    let address = head.split_whitespace().nth(1).unwrap_or_default();
    let mut server = TcpStream::connect(address)?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let mut to_server = server.try_clone()?;
    thread::spawn(move || {
        let _ = io::copy(&mut reader, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Write)
}

#[test]
fn https_goes_through_a_connect_proxy() {
    let (ours, proxy) = (Authority::new("ours"), Proxy::start());
    let world = ours.hub("127.0.0.1", 4000);
    let through = format!("http://user:pass-word@{}", proxy.address);
    // NO_PROXY for another host has no effect.
    let output = ours.pull(&world).env("HTTPS_PROXY", &through).env("NO_PROXY", "hub.example").output().unwrap();
    let shown = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && !shown.contains("pass-word"), "{shown}");
    let (requests, hub) = (proxy.requests(), world.hub.endpoint().replace("https://", "CONNECT "));
    assert!(requests.iter().any(|head| head.starts_with(&hub)), "{requests:?}");
    let basic = "basic dxnlcjpwyxnzlxdvcmq="; // user:pass-word
    assert!(requests.iter().all(|head| head.starts_with("CONNECT 127.0.0.1:") && head.to_lowercase().contains(basic)));
    assert!(!requests.iter().any(|head| head.contains("Signature")), "paths are inside TLS");

    succeeds(ours.pull(&world).arg("--force").env("HTTPS_PROXY", &through).env("NO_PROXY", "localhost,127.0.0.1"));
    assert_eq!(proxy.requests().len(), requests.len(), "NO_PROXY contains this host");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = ours.pull(&world).env("HTTPS_PROXY", format!("http://user:pass-word@{nobody}")).output().unwrap();
    let stderr = text(&output.stderr);
    let error = ": no connection (connection refused); check the network and the proxy\n";
    assert!(output.status.code() == Some(1) && stderr.ends_with(error) && stderr.lines().count() == 1, "{stderr}");
}

/// HTTPS_PROXY applies to https only; NO_PROXY excludes the hub's host.
#[test]
fn each_scheme_has_its_own_proxy() {
    let world = World::with_model(SMALL);
    let proxy = TestHub::start(); // it answers CONNECT with an error
    let mut pull = world.hymba(QUICK);
    pull.env("HF_ENDPOINT", "https://hub.example").env("HTTPS_PROXY", proxy.endpoint());
    fails(&mut pull, 1, &["https://hub.example: the proxy refuses the connection: "]);
    let requests = proxy.requests();
    assert!(
        !requests.is_empty() && requests.iter().all(|r| r.method == "CONNECT" && r.path == "hub.example:443"),
        "{requests:?}"
    );
    succeeds(world.hymba(QUICK).env("HTTPS_PROXY", proxy.endpoint()));
    succeeds(world.hymba(QUICK).arg("--force").env("HTTP_PROXY", proxy.endpoint()).env("NO_PROXY", "127.0.0.1"));
    assert_eq!(proxy.requests().len(), requests.len());
}
