//! A load of one command on many connections, from one thread. Each connection asks for a key of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::Fallible;
use crate::proxies::{Done, KEYS};

/// Who has to wait for longer is not served at all.
const IN_TIME: Duration = Duration::from_secs(60);
/// As many bytes are read at a time.
const PIECE: usize = 64 * 1024;

/// What all connections ask for, and how the answer begins and how long it is.
#[derive(Clone, Copy)]
pub enum Ask {
    Get(usize),
    Set(usize),
}

impl Ask {
    fn request(self, connection: usize) -> Vec<u8> {
        let key = format!("key:{:012}", connection % KEYS as usize);
        let mut request = match self {
            Self::Get(_) => format!("*2\r\n$3\r\nGET\r\n$16\r\n{key}\r\n"),
            Self::Set(size) => format!("*3\r\n$3\r\nSET\r\n$16\r\n{key}\r\n${size}\r\n"),
        }
        .into_bytes();
        if let Self::Set(size) = self {
            request.resize(request.len() + size, b'x');
            request.extend_from_slice(b"\r\n");
        }
        request
    }

    fn answer(self) -> (Vec<u8>, usize) {
        match self {
            Self::Get(size) => {
                let head = format!("${size}\r\n").into_bytes();
                let length = head.len() + size + 2;
                (head, length)
            }
            Self::Set(_) => (b"+OK\r\n".to_vec(), 5),
        }
    }
}

struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
    /// Bytes of requests still to be sent, and of answers still to come.
    unsent: usize,
    awaited: usize,
    /// Whether epoll tells when it can be written to.
    blocked: bool,
}

/// Open connections.
pub struct Load {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    events: Vec<epoll::Event>,
    head: Vec<u8>,
    length: usize,
    buffer: Vec<u8>,
}

impl Load {
    /// Opens so many connections. Each has had one answer, so everybody on the way has it open too.
    pub fn connect(address: &str, connections: usize, ask: Ask) -> Fallible<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (head, length) = ask.answer();
        let mut load = Self {
            epoll,
            connections: Vec::new(),
            events: Vec::with_capacity(1024),
            head,
            length,
            buffer: vec![0; PIECE],
        };
        for number in 0..connections {
            let socket = TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            epoll::add(
                &load.epoll,
                &socket,
                epoll::EventData::new_u64(number as u64),
                epoll::EventFlags::IN,
            )?;
            let request = ask.request(number);
            load.connections.push(Connection { socket, request, unsent: 0, awaited: 0, blocked: false });
            load.send(number)?;
            load.until_answered(1)?;
        }
        Ok(load)
    }

    /// Each connection asks again as soon as it is answered, for so long.
    pub fn closed(&mut self, time: Duration) -> Fallible<Done> {
        let began = Instant::now();
        for number in 0..self.connections.len() {
            self.send(number)?;
        }
        let (mut sent, mut answered) = (self.connections.len() as u64, 0);
        while answered < sent {
            for number in self.answers(IN_TIME)? {
                answered += 1;
                if began.elapsed() < time {
                    self.send(number)?;
                    sent += 1;
                }
            }
        }
        Ok(Done { requests: answered, seconds: began.elapsed().as_secs_f64() })
    }

    /// So many requests per second on all connections together, whether the ones before are answered or not.
    pub fn paced(&mut self, rate: f64, time: Duration) -> Fallible<Done> {
        let began = Instant::now();
        let (mut sent, mut answered) = (0, 0);
        let all = (rate * time.as_secs_f64()) as u64;
        while sent < all {
            let due = ((began.elapsed().as_secs_f64() * rate) as u64 + 1).min(all);
            while sent < due {
                self.send((sent % self.connections.len() as u64) as usize)?;
                sent += 1;
            }
            let next = Duration::from_secs_f64(sent as f64 / rate);
            answered += self.answers(next.saturating_sub(began.elapsed()))?.len() as u64;
        }
        self.until_answered(sent - answered)?;
        Ok(Done { requests: sent, seconds: began.elapsed().as_secs_f64() })
    }

    fn until_answered(&mut self, mut requests: u64) -> Fallible<()> {
        while requests > 0 {
            requests -= self.answers(IN_TIME)?.len() as u64;
        }
        Ok(())
    }

    /// A further request on a connection.
    fn send(&mut self, number: usize) -> Fallible<()> {
        let connection = &mut self.connections[number];
        connection.unsent += connection.request.len();
        connection.awaited += self.length;
        self.flush(number)
    }

    fn flush(&mut self, number: usize) -> Fallible<()> {
        let connection = &mut self.connections[number];
        while connection.unsent > 0 {
            let length = connection.request.len();
            // All requests of a connection are the same bytes.
            let from = (length - connection.unsent % length) % length;
            match connection.socket.write(&connection.request[from..]) {
                Ok(written) => connection.unsent -= written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let blocked = connection.unsent > 0;
        if blocked != connection.blocked {
            connection.blocked = blocked;
            let flags =
                if blocked { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
            let data = epoll::EventData::new_u64(number as u64);
            epoll::modify(&self.epoll, &connection.socket, data, flags)?;
        }
        Ok(())
    }

    /// Waits for answers for so long, or until there are some; the connections that have had one each.
    fn answers(&mut self, patience: Duration) -> Fallible<Vec<usize>> {
        let timeout = Timespec::try_from(patience)?;
        self.events.clear();
        // epoll's own timeout counts in milliseconds, in which a paced load would become one of bursts.
        poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout))?;
        epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&Timespec::default()))?;
        if self.events.is_empty() && patience >= IN_TIME {
            return Err(format!("no answer within {} s", IN_TIME.as_secs()).into());
        }
        let mut answered = Vec::new();
        for place in 0..self.events.len() {
            let epoll::Event { flags, data, .. } = self.events[place];
            let number = data.u64() as usize;
            self.flush(number)?;
            if flags != epoll::EventFlags::OUT {
                let answers = self.receive(number)?;
                answered.extend(std::iter::repeat_n(number, answers));
            }
        }
        Ok(answered)
    }

    /// Reads once; how many answers are complete by that.
    fn receive(&mut self, number: usize) -> Fallible<usize> {
        let connection = &mut self.connections[number];
        let read = match connection.socket.read(&mut self.buffer) {
            Ok(0) => return Err("a connection was closed".into()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let begins = connection.awaited.is_multiple_of(self.length);
        let told = &self.buffer[..read.min(self.head.len())];
        if read > connection.awaited || begins && !self.head.starts_with(told) {
            let said = String::from_utf8_lossy(&self.buffer[..read.min(80)]);
            return Err(format!("an answer that was not expected: {said:?}").into());
        }
        let before = connection.awaited.div_ceil(self.length);
        connection.awaited -= read;
        Ok(before - connection.awaited.div_ceil(self.length))
    }
}
