//! A headless Chromium, told what to do over a pair of pipes by the DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Fallible, Outcome, PATIENCE};

/// Without background traffic, and with as little as it can do without.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
];

/// A browser with one page.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// Everything that the page has asked for.
    pub requests: Vec<String>,
    /// What it has complained of.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts it, with an empty page of this size.
    pub fn start(width: u32, height: u32) -> Fallible<Self> {
        let profile = tempfile::tempdir()?;
        // It reads commands from descriptor 3 and answers on 4: a shell puts our pipes there.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>&1", "sh", "chromium"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--window-size={width},{height}"))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().ok_or("no pipe")?;
        let answers = child.stdout.take().ok_or("no pipe")?;
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut answers = BufReader::new(answers);
            loop {
                let mut message = Vec::new();
                match answers.read_until(0, &mut message) {
                    Ok(n) if n > 1 => {}
                    _ => return,
                }
                message.pop();
                let Ok(message) = serde_json::from_slice(&message) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            commands,
            messages,
            next: 0,
            session: None,
            requests: Vec::new(),
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach)?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Network.enable", "Log.enable"] {
            browser.call(domain, json!({}))?;
        }
        Ok(browser)
    }

    /// A command, and its answer.
    pub fn call(&mut self, method: &str, params: Value) -> Fallible<Value> {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes())?;
        loop {
            let message = self.messages.recv_timeout(PATIENCE).map_err(|e| format!("{method}: {e}"))?;
            if message["id"] == id {
                let error = &message["error"];
                return if error.is_null() {
                    Ok(message["result"].clone())
                } else {
                    Err(error.to_string().into())
                };
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.push(event["params"]["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(event["params"].to_string()),
            Some("Log.entryAdded") if event["params"]["entry"]["source"] != "network" => {
                self.complaints.push(event["params"]["entry"]["text"].to_string());
            }
            _ => {}
        }
    }

    /// What a script's expression comes to.
    pub fn eval(&mut self, script: &str) -> Fallible<Value> {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let found = self.call("Runtime.evaluate", params)?;
        match found.get("exceptionDetails") {
            None => Ok(found["result"]["value"].clone()),
            Some(details) => Err(format!("{script}: {details}").into()),
        }
    }

    /// The text of what a selector finds.
    pub fn text(&mut self, selector: &str) -> Fallible<String> {
        let script = format!("document.querySelector({}).innerText", json!(selector));
        Ok(self.eval(&script)?.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, script: &str) -> Outcome {
        let began = Instant::now();
        while self.eval(script)? != true {
            if began.elapsed() > PATIENCE {
                let page = self.text("body")?;
                return Err(format!("never: {script}\n{page}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Goes to a page.
    pub fn open(&mut self, url: &str) -> Outcome {
        self.call("Page.navigate", json!({ "url": url }))?;
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
    }

    /// The size of the window, and what the system's settings ask of pages.
    pub fn look(&mut self, width: u32, scheme: &str) -> Outcome {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let scheme = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": scheme }))?;
        Ok(())
    }

    /// A key is pressed: its name, and what it writes.
    pub fn press(&mut self, key: &str, text: &str) -> Outcome {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Writes into what has the focus.
    pub fn type_in(&mut self, text: &str) -> Outcome {
        self.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    /// The whole page as a picture.
    pub fn picture(&mut self, file: &Path) -> Outcome {
        let size = self.call("Page.getLayoutMetrics", json!({}))?;
        let size = &size["cssContentSize"];
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let options = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.call("Page.captureScreenshot", options)?;
        let data = picture["data"].as_str().ok_or("no picture")?;
        std::fs::create_dir_all(file.parent().ok_or("no directory")?)?;
        use base64::Engine;
        Ok(std::fs::write(file, base64::prelude::BASE64_STANDARD.decode(data)?)?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
