//! How long one client waits that is alone: short slices by turns, so that whatever else the machine does meets all alike.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::proxies::{DIRECT, HAPROXY, Stand, Way};
use crate::{Fallible, median, percentile};

const SIZE: usize = 64;
/// Requests of a slice, and slices of a round.
const REQUESTS: usize = 500;
const SLICES: usize = 20;

/// The p50 and the p99 of a slice, in us.
type Slice = [f64; 2];

/// GET on one connection.
pub async fn run(rounds: usize) -> Fallible<String> {
    let mut stand = Stand::start().await?;
    stand.fill(SIZE).await?;
    let mut connections = Vec::new();
    for way in &stand.ways {
        let socket = TcpStream::connect(way.address())?;
        socket.set_nodelay(true)?;
        connections.push(socket);
    }
    let mut taken = Vec::new();
    for _ in 0..rounds * SLICES {
        let slices: Fallible<Vec<Slice>> = connections.iter_mut().map(slice).collect();
        taken.push(slices?);
    }
    Ok(format!(
        "GET, {SIZE} bytes, one connection; {} slices of {REQUESTS} requests, the medians of what the slices came \
         to and of their ratios:\n\n{}",
        taken.len(),
        table(&stand.ways, &taken)
    ))
}

fn slice(socket: &mut TcpStream) -> Fallible<Slice> {
    let request = b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000000\r\n";
    let mut answer = [0; SIZE + 7];
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let began = Instant::now();
        socket.write_all(request)?;
        socket.read_exact(&mut answer)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    if !answer.starts_with(b"$64\r\n") {
        return Err(format!("GET: {:?}", String::from_utf8_lossy(&answer)).into());
    }
    Ok([percentile(times.clone(), 50), percentile(times, 99)])
}

fn table(ways: &[Way], taken: &[Vec<Slice>]) -> String {
    let mut text = String::from(
        "| | p50, us | / direct | / HAProxy | p99, us | / direct | / HAProxy |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let place = |name: &str| ways.iter().position(|way| way.name == name);
    let (direct, haproxy) = (place(DIRECT), place(HAPROXY));
    for (number, way) in ways.iter().enumerate() {
        let _ = write!(text, "| {} |", way.name);
        for which in [0, 1] {
            let middle = median(taken.iter().map(|slices| slices[number][which]));
            let ratio = |to: Option<usize>| {
                to.filter(|&to| to != number).map_or_else(String::new, |to| {
                    let ratios = taken.iter().map(|slices| slices[number][which] / slices[to][which]);
                    format!("{:.2}", median(ratios))
                })
            };
            let _ = write!(text, " {middle:.0} | {} | {} |", ratio(direct), ratio(haproxy));
        }
        text.push('\n');
    }
    text
}
