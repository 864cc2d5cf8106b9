//! A running `hymba serve`, and an HTTP client on plain sockets, which can send invalid requests.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{demo_of_any_depth, hymba};

/// A server process, killed on drop.
pub struct Server {
    child: Child,
    /// The address it reports: `host:port`, or the path of its socket.
    pub address: String,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Returns the parameter that an error names, its code and its message.
    #[track_caller]
    pub fn error(&self) -> (String, String, String) {
        let error = &self.json()["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("message").is_empty() && !text("type").is_empty(), "{self:?}");
        (text("param"), text("code"), text("message"))
    }
}

impl Server {
    /// Starts a server with these flags.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, Stdio::inherit())
    }

    /// The same with `stderr` as standard error.
    pub fn start_with(flags: &[&str], stderr: impl Into<Stdio>) -> Self {
        let model = demo_of_any_depth();
        let mut command = hymba(["serve", "-m", &model, "--alias", "demo", "--temp", "0"]);
        command.args(flags);
        if !flags.contains(&"--unix") {
            command.args(["--port", "0"]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap_or_default().trim_start_matches("http://").to_owned();
        assert!(line.starts_with("hymba: serving demo at "), "{line}");
        Self { child, address }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends the bytes of a request unchanged.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        let _ = stream.write_all(request); // the server may have closed it already
        read_answer(stream)
    }

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.raw(request("GET", path, headers, "").as_bytes())
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, &[], body)
    }

    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        self.raw(request("POST", path, &headers, &body.to_string()).as_bytes())
    }

    /// Posts a request, and returns the connection without reading the answer.
    pub fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        let headers = [("Content-Type", "application/json")];
        stream.write_all(request("POST", path, &headers, &body.to_string()).as_bytes()).unwrap();
        stream
    }

    /// Returns a metric's value, summed over its rows.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics", &[]).body;
        let rows = page.lines().filter(|line| line.starts_with(&format!("hymba_{name}")));
        let rows: Vec<f64> = rows.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!rows.is_empty(), "{name}: {page}");
        rows.into_iter().sum()
    }

    /// Waits until a metric satisfies `wanted`, at most a minute; returns the time it took.
    #[track_caller]
    pub fn wait_for(&self, name: &str, wanted: impl Fn(f64) -> bool) -> Duration {
        let start = Instant::now();
        while !wanted(self.metric(name)) {
            assert!(start.elapsed() < Duration::from_secs(60), "{name} is {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    #[cfg(unix)]
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Returns the peak memory of the process, in bytes.
    #[cfg(target_os = "linux")]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a request with `Connection: close`, and a Host header unless `headers` contains one.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text += "Host: localhost\r\n";
    }
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    if method == "POST" {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

/// Reads an answer to its end, with or without chunked encoding.
#[track_caller]
pub fn read_answer(mut stream: impl Read) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // the bytes before a reset count
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, rest) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { decode_chunks(rest) } else { rest.to_owned() };
    Answer { status, headers, body }
}

/// Decodes a chunked body.
fn decode_chunks(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        body += &after[..size];
        rest = &after[size + 2..];
    }
    body
}

/// Returns the data of a stream's events, without the final `[DONE]`.
#[track_caller]
pub fn events(answer: &Answer) -> Vec<Value> {
    let mut data: Vec<&str> = answer.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{answer:?}");
    data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
}
