//! A test double of the Hugging Face Hub: it implements the HTTP API that clients use, serves the files that a test commits,
//! and injects faults on request. Plain files come from the hub itself, LFS files from another port that acts as a CDN.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// One of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Hub,
    Cdn,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub side: Side,
    pub method: String,
    /// Including the query.
    pub path: String,
    /// Names are in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn is_get_of_data(&self) -> bool {
        self.side == Side::Cdn && self.method == "GET"
    }
}

/// A fault of an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    None,
    /// This status, with these headers and no body.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection closes after this many bytes of the body.
    Cut(usize),
    /// No more data after this many bytes of the body.
    Stall(usize),
    /// A pause before every 64 KiB.
    Slow(Duration),
    /// One byte of the body is wrong.
    WrongByte,
    /// The body and its declared length are this many bytes too long.
    Longer(usize),
    /// The Range header is ignored.
    NoRanges,
    /// A header has this value, or is missing.
    Header(&'static str, Option<String>),
}

type Hook = Box<dyn Fn(&Request) -> Fault + Send + Sync>;

#[derive(Clone)]
struct File {
    bytes: Arc<Vec<u8>>,
    is_lfs: bool,
}

impl File {
    fn sha256(&self) -> String {
        hex(&Sha256::digest(&*self.bytes))
    }

    fn git(&self) -> String {
        let header = format!("blob {}\0", self.bytes.len());
        hex(&Sha1::new().chain_update(header).chain_update(&*self.bytes).finalize())
    }
}

#[derive(Default)]
struct Repo {
    revisions: BTreeMap<String, String>,
    commits: HashMap<String, BTreeMap<String, File>>,
    card: Value,
    /// The token of a user who accepted the license.
    gate: Option<String>,
    /// Its new name.
    moved: Option<String>,
}

#[derive(Default)]
struct State {
    repos: Mutex<HashMap<String, Repo>>,
    blobs: Mutex<HashMap<String, File>>,
    log: Mutex<Vec<Request>>,
    hook: Mutex<Option<Hook>>,
    sent: AtomicU64,
    stop: AtomicBool,
    ports: Mutex<[u16; 2]>,
    tls: Option<Arc<ServerConfig>>,
}

impl State {
    fn address(&self, side: Side) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports.lock().unwrap()[side as usize])
    }
}

pub struct TestHub {
    state: Arc<State>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl TestHub {
    pub fn start() -> Self {
        Self::serve(State::default())
    }

    /// The same over TLS.
    pub fn start_tls(config: Arc<ServerConfig>) -> Self {
        Self::serve(State { tls: Some(config), ..State::default() })
    }

    fn serve(state: State) -> Self {
        let state = Arc::new(state);
        for (i, side) in [Side::Hub, Side::Cdn].into_iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            state.ports.lock().unwrap()[i] = listener.local_addr().unwrap().port();
            let state = state.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    if state.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (Ok(stream), state) = (stream, state.clone()) else { continue };
                    thread::spawn(move || drop(accept(&state, side, stream)));
                }
            });
        }
        Self { state }
    }

    pub fn endpoint(&self) -> String {
        self.state.address(Side::Hub)
    }

    /// Commits files to `revision` of `repo`, and returns the commit; files with `true` are in LFS.
    pub fn commit(&self, repo: &str, revision: &str, files: &[(&str, &[u8], bool)]) -> String {
        let files: BTreeMap<String, File> = files
            .iter()
            .map(|&(path, bytes, is_lfs)| (path.to_owned(), File { bytes: Arc::new(bytes.to_vec()), is_lfs }))
            .collect();
        let mut hasher = Sha1::new();
        for (path, file) in &files {
            hasher.update(format!("{path} {}\n", file.sha256()));
            self.state.blobs.lock().unwrap().insert(file.sha256(), file.clone());
        }
        let commit = hex(&hasher.finalize());
        let mut repos = self.state.repos.lock().unwrap();
        let repo = repos.entry(repo.into()).or_default();
        repo.commits.insert(commit.clone(), files);
        repo.revisions.insert(revision.into(), commit.clone());
        commit
    }

    /// Commits the files of a folder; weights are in LFS.
    pub fn commit_folder(&self, repo: &str, folder: &std::path::Path) -> String {
        let files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap())
            .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()))
            .collect();
        let is_lfs = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
        let files: Vec<_> = files.iter().map(|(name, bytes)| (&**name, &bytes[..], is_lfs(name))).collect();
        self.commit(repo, "main", &files)
    }

    pub fn set_card(&self, repo: &str, card: Value) {
        self.state.repos.lock().unwrap().entry(repo.into()).or_default().card = card;
    }

    pub fn gate(&self, repo: &str, token: &str) {
        self.state.repos.lock().unwrap().entry(repo.into()).or_default().gate = Some(token.into());
    }

    pub fn rename(&self, from: &str, to: &str) {
        let mut repos = self.state.repos.lock().unwrap();
        let repo = repos.remove(from).unwrap();
        repos.insert(to.into(), repo);
        repos.insert(from.into(), Repo { moved: Some(to.into()), ..Repo::default() });
    }

    /// From now on, answers have the faults that `hook` returns.
    pub fn on(&self, hook: impl Fn(&Request) -> Fault + Send + Sync + 'static) {
        *self.state.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    pub fn forget_requests(&self) {
        self.state.log.lock().unwrap().clear();
        self.state.sent.store(0, Ordering::Relaxed);
    }

    /// Returns the number of bytes of files that were sent.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for port in *self.state.ports.lock().unwrap() {
            drop(TcpStream::connect(("127.0.0.1", port)));
        }
    }
}

/// An answer: status, headers, and the bytes of a file or of a message.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Arc<Vec<u8>>,
    range: std::ops::Range<usize>,
    is_file: bool,
}

impl Answer {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        Self { status, headers, range: 0..body.len(), body: Arc::new(body), is_file: false }
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let headers = vec![("X-Error-Code", code.to_owned()), ("X-Error-Message", message.to_owned())];
        Self::new(status, headers, json!({ "error": message }).to_string().into_bytes())
    }

    /// Returns a file, or the range of it that the request asks for.
    fn file(file: &File, etag: &str, request: &Request, ranged: bool) -> Self {
        let length = file.bytes.len();
        let mut headers = vec![("ETag", format!("\"{etag}\""))];
        let (mut status, mut range) = (200, 0..length);
        let fresh = request.header("if-range").is_none_or(|tag| tag.trim_matches('"') == etag);
        if let Some(wanted) = request.header("range").filter(|_| ranged && fresh) {
            let (start, end) = wanted.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let start: usize = start.parse().unwrap();
            let end = end.parse().map_or(length, |end: usize| (end + 1).min(length));
            if start >= length {
                return Self::new(416, vec![("Content-Range", format!("bytes */{length}"))], Vec::new());
            }
            (status, range) = (206, start..end);
            headers.push(("Content-Range", format!("bytes {start}-{}/{length}", end - 1)));
        }
        Self { status, headers, body: file.bytes.clone(), range, is_file: true }
    }
}

fn accept(state: &State, side: Side, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match &state.tls {
        None => serve_requests(state, side, stream),
        Some(tls) => {
            let connection = ServerConnection::new(tls.clone()).map_err(io::Error::other)?;
            serve_requests(state, side, StreamOwned::new(connection, stream))
        }
    }
}

/// Answers requests on a connection until it closes.
fn serve_requests(state: &State, side: Side, stream: impl Read + Write) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader, side)? {
        if state.stop.load(Ordering::Relaxed) {
            break;
        }
        state.log.lock().unwrap().push(request.clone());
        let fault = state.hook.lock().unwrap().as_ref().map_or(Fault::None, |hook| hook(&request));
        let ranged = !matches!(fault, Fault::NoRanges);
        let answer = match (&fault, side) {
            (Fault::Status(status, headers), _) => Answer::new(*status, headers.clone(), Vec::new()),
            (_, Side::Hub) => answer_of_hub(state, &request, ranged),
            (_, Side::Cdn) => answer_of_cdn(state, &request, ranged),
        };
        send(state, reader.get_mut(), &request, answer, &fault)?;
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead, side: Side) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(Some(Request { side, method, path, headers }))
}

fn send(state: &State, stream: &mut impl Write, request: &Request, answer: Answer, fault: &Fault) -> io::Result<()> {
    let Answer { status, mut headers, body, range, is_file } = answer;
    let mut bytes = body[range].to_vec();
    let mut cut = None;
    match *fault {
        Fault::WrongByte if !bytes.is_empty() => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Fault::Longer(more) => bytes.extend(vec![0; more]),
        Fault::Cut(at) | Fault::Stall(at) => cut = Some(at.min(bytes.len())),
        Fault::Header(name, ref value) => {
            headers.retain(|(known, _)| *known != name);
            headers.extend(value.clone().map(|value| (name, value)));
        }
        _ => (),
    }
    let mut head = format!("HTTP/1.1 {status} {}\r\nContent-Length: {}\r\n", reason(status), bytes.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    for chunk in bytes[..cut.unwrap_or(bytes.len())].chunks(64 << 10) {
        if let Fault::Slow(pause) = fault {
            thread::sleep(*pause);
        }
        stream.write_all(chunk)?;
        if is_file {
            state.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }
    match fault {
        Fault::Stall(_) => {
            while !state.stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
            Err(io::ErrorKind::Other.into())
        }
        Fault::Cut(_) => Err(io::ErrorKind::Other.into()),
        _ => Ok(()),
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        _ => "Status",
    }
}

fn answer_of_cdn(state: &State, request: &Request, ranged: bool) -> Answer {
    let name = request.path.strip_prefix("/blob/").and_then(|rest| rest.split('?').next()).unwrap_or_default();
    match state.blobs.lock().unwrap().get(name) {
        Some(file) if request.path.contains("Signature=") => {
            Answer::file(file, &format!("cdn-{}", &name[..12]), request, ranged)
        }
        _ => Answer::error(403, "", "no such object"),
    }
}

fn answer_of_hub(state: &State, request: &Request, ranged: bool) -> Answer {
    let repos = state.repos.lock().unwrap();
    let path = request.path.split('?').next().unwrap().replace("%2F", "/");
    let (is_api, rest) = match path.strip_prefix("/api/models/") {
        Some(rest) => (true, rest),
        None => (false, path.trim_start_matches('/')),
    };
    let parts: Vec<&str> = rest.splitn(5, '/').collect();
    let [owner, name, ..] = parts[..] else { return Answer::error(404, "", "no such page") };
    let id = format!("{owner}/{name}");
    let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let Some(repo) = repos.get(&id) else {
        let status = if token.is_some() { 404 } else { 401 };
        return Answer::error(status, "RepoNotFound", "Repository not found");
    };
    if let Some(new) = &repo.moved {
        return Answer::new(307, vec![("Location", request.path.replacen(&id, new, 1))], Vec::new());
    }
    let revision = parts.get(3).copied().unwrap_or("main");
    let commit = repo.revisions.get(revision).cloned().unwrap_or(revision.to_owned());
    let Some(files) = repo.commits.get(&commit) else {
        return Answer::error(404, "RevisionNotFound", "Invalid rev id");
    };
    match (is_api, parts.get(2).copied()) {
        (true, None | Some("revision")) => {
            let blobs = request.path.contains("blobs=true");
            Answer::new(200, vec![("Content-Type", "application/json".into())], info(&id, repo, &commit, files, blobs))
        }
        (true, Some("tree")) => {
            let entry = |(path, file): (&String, &File)| {
                let mut entry = json!({ "type": "file", "path": path, "size": file.bytes.len(), "oid": file.git() });
                if file.is_lfs {
                    entry["lfs"] = json!({ "oid": file.sha256(), "size": file.bytes.len(), "pointerSize": 130 });
                }
                entry
            };
            let entries: Vec<Value> = files.iter().map(entry).collect();
            Answer::new(200, vec![("Content-Type", "application/json".into())], json!(entries).to_string().into_bytes())
        }
        (false, Some("resolve")) => {
            if repo.gate.as_deref().is_some_and(|gate| token != Some(gate)) {
                let status = if token.is_some() { 403 } else { 401 };
                return Answer::error(status, "GatedRepo", "Access to this model is restricted");
            }
            let commit = ("X-Repo-Commit", commit.clone());
            let Some(file) = files.get(parts.get(4).copied().unwrap_or_default()) else {
                let mut answer = Answer::error(404, "EntryNotFound", "Entry not found");
                answer.headers.push(commit);
                return answer;
            };
            if !file.is_lfs {
                let mut answer = Answer::file(file, &file.git(), request, ranged);
                answer.headers.push(commit);
                return answer;
            }
            let (hash, cdn) = (file.sha256(), state.address(Side::Cdn));
            let location = format!("{cdn}/blob/{hash}?Signature=secret-of-the-cdn&Expires=1");
            let linked = [("X-Linked-ETag", format!("\"{hash}\"")), ("X-Linked-Size", file.bytes.len().to_string())];
            let headers = linked.into_iter().chain([commit, ("Location", location)]).collect();
            Answer::new(302, headers, b"Found. Redirecting".to_vec())
        }
        _ => Answer::error(404, "", "no such page"),
    }
}

fn info(id: &str, repo: &Repo, commit: &str, files: &BTreeMap<String, File>, blobs: bool) -> Vec<u8> {
    let sibling = |(path, file): (&String, &File)| {
        let mut sibling = json!({ "rfilename": path });
        if blobs {
            sibling["size"] = json!(file.bytes.len());
            sibling["blobId"] = json!(file.git());
            if file.is_lfs {
                sibling["lfs"] = json!({ "sha256": file.sha256(), "size": file.bytes.len(), "pointerSize": 130 });
            }
        }
        sibling
    };
    let siblings: Vec<Value> = files.iter().map(sibling).collect();
    let gated = if repo.gate.is_some() { json!("auto") } else { json!(false) };
    json!({
        "_id": "0", "id": id, "modelId": id, "sha": commit, "private": false, "gated": gated, "disabled": false,
        "downloads": 0, "likes": 0, "tags": [], "siblings": siblings, "cardData": repo.card,
    })
    .to_string()
    .into_bytes()
}

/// Returns the files of a checkpoint with `vocab` tokens: a golden one with another embedding, of 256 bytes per token, so that
/// it can have any size.
pub fn checkpoint(vocab: usize) -> Vec<(String, Vec<u8>)> {
    let folder = std::path::PathBuf::from(crate::common::golden("tiny-a"));
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(vocab);
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let (name, width) = ("model.embed_tokens.weight", 64);
    let old = header[name]["data_offsets"][1].as_u64().unwrap() as usize;
    assert_eq!(header[name]["data_offsets"][0], 0, "the embedding comes first");
    let new = vocab * width * 4;
    for (key, tensor) in header.as_object_mut().unwrap() {
        if key == name {
            *tensor = json!({ "dtype": "F32", "shape": [vocab, width], "data_offsets": [0, new] });
        } else if key != "__metadata__" {
            for offset in tensor["data_offsets"].as_array_mut().unwrap() {
                *offset = json!(offset.as_u64().unwrap() as usize - old + new);
            }
        }
    }
    let mut header = header.to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let mut state = 1u32;
    weights.extend((0..vocab * width).flat_map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()
    }));
    weights.extend(&file[8 + length + old..]);
    let card = "---\nlicense: other\nlicense_name: tiny-license\nlicense_link: LICENSE\n---\n# Tiny\n";
    vec![
        ("README.md".into(), card.into()),
        ("LICENSE".into(), b"Do what you like.\n".to_vec()),
        ("config.json".into(), config.to_string().into_bytes()),
        ("model.safetensors".into(), weights),
        ("pytorch_model.bin".into(), b"not wanted".to_vec()),
        ("modeling_hymba.py".into(), b"print('not wanted')".to_vec()),
    ]
}

/// Commits the files of a checkpoint; weights are in LFS.
pub fn commit(hub: &TestHub, repo: &str, files: &[(String, Vec<u8>)]) -> String {
    let is_lfs = |name: &str| [".safetensors", ".gguf", ".bin"].iter().any(|suffix| name.ends_with(suffix));
    let files: Vec<_> = files.iter().map(|(name, bytes)| (&**name, &bytes[..], is_lfs(name))).collect();
    hub.set_card(repo, json!({ "license": "other", "license_name": "tiny-license", "license_link": "LICENSE" }));
    hub.commit(repo, "main", &files)
}

/// A hub, and a temporary cache and model folder for the binary.
pub struct World {
    pub hub: TestHub,
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self::with_hub(TestHub::start())
    }

    pub fn with_hub(hub: TestHub) -> Self {
        Self { hub, dir: tempfile::tempdir().unwrap() }
    }

    /// The hub contains a checkpoint of `vocab` tokens as `a/Tiny-Model`.
    pub fn with_model(vocab: usize) -> Self {
        let world = Self::new();
        commit(&world.hub, REPO, &checkpoint(vocab));
        world
    }

    /// Returns a command that runs the binary with this environment.
    pub fn hymba<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> std::process::Command {
        let mut command = crate::common::hymba(args);
        self.set_env(&mut command);
        command
    }

    /// Sets the environment of a command: this hub and these folders.
    pub fn set_env(&self, command: &mut std::process::Command) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["HF_", "SSL_CERT_"].iter().any(|start| name.starts_with(start))
                || name.to_lowercase().ends_with("_proxy")
            {
                command.env_remove(&*name);
            }
        }
        command.env("HF_ENDPOINT", self.hub.endpoint()).env("HF_HOME", self.dir.path().join("hf"));
        command.env("HYMBA_MODELS", self.dir.path().join("models"));
    }

    pub fn cache(&self) -> std::path::PathBuf {
        self.dir.path().join("hf/hub/models--a--Tiny-Model")
    }

    pub fn installed(&self, kind: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("models/a/Tiny-Model-{kind}.gguf"))
    }
}

pub const REPO: &str = "a/Tiny-Model";
