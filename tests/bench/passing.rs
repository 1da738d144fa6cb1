//! redis-benchmark straight to Redis and through every proxy, by turns. REQUESTS says how many a run has without pipelining;
//! with it, eight times as many.

use std::process::Command;

use crate::proxies::{Done, KEYS, Stand};
use crate::{Fallible, setting, turns};

const CONNECTIONS: u32 = 50;

/// What one run of redis-benchmark does.
#[derive(Clone, Copy)]
struct Shape {
    command: &'static str,
    size: usize,
    pipeline: u32,
    requests: u32,
}

/// Requests per second and CPU per request, of GET and SET, small and not so small, alone and sixteen at a time.
pub async fn run(rounds: usize) -> Fallible<String> {
    let requests = setting("REQUESTS", 20_000)?;
    let mut stand = Stand::start().await?;
    let mut text = String::new();
    for (pipeline, requests) in [(1, requests), (16, requests * 8)] {
        for command in ["GET", "SET"] {
            for size in [64, 1024] {
                let shape = Shape { command, size, pipeline, requests };
                text += &format!("\n{command}, {size} bytes, {}:\n\n", pipelined(pipeline));
                text += &by_turns(&mut stand, shape, rounds).await?;
            }
        }
    }
    stand.all_admitted().await?;
    Ok(text)
}

fn pipelined(pipeline: u32) -> String {
    if pipeline == 1 { "no pipelining".to_owned() } else { format!("{pipeline} requests at a time") }
}

async fn by_turns(stand: &mut Stand, shape: Shape, rounds: usize) -> Fallible<String> {
    stand.fill(shape.size).await?;
    let mut taken = turns::Rounds::new();
    for _ in 0..rounds {
        let mut round = Vec::new();
        for way in &stand.ways {
            round.push(stand.measured(way, || shape.run(way.port)).await?);
        }
        taken.push(round);
    }
    Ok(turns::table(&stand.ways, &taken))
}

impl Shape {
    fn run(self, port: u16) -> Fallible<Done> {
        let numbers =
            [u32::from(port), self.requests, CONNECTIONS, self.pipeline, KEYS].map(|n| n.to_string());
        let [port, requests, connections, pipeline, keys] = &numbers;
        let output = Command::new("redis-benchmark")
            .args(["-p", port, "-n", requests, "-c", connections, "-P", pipeline, "-r", keys, "--csv"])
            .args(["-t", self.command, "-d", &self.size.to_string()])
            .output()
            .map_err(|error| format!("redis-benchmark, of the package redis-tools: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "GET","35087.72",...
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("\"{}\",\"", self.command)));
        let rate = line.and_then(|line| line.split('"').next()?.parse::<f64>().ok());
        let rate = rate
            .filter(|_| output.status.success())
            .ok_or_else(|| format!("redis-benchmark: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(Done { requests: u64::from(self.requests), seconds: f64::from(self.requests) / rate })
    }
}
