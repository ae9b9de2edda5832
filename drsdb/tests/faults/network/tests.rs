//! The proxies by themselves, with an echo server behind one.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

use super::{Network, Node, Proxy};

const SERVER: Node = Node::Storage(1);

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    address
}

async fn proxied() -> (Network, Proxy, TcpStream) {
    let network = Network::new();
    let proxy = Proxy::start(network.clone(), SERVER, echo().await).await.unwrap();
    let stream = TcpStream::connect(proxy.address()).await.unwrap();
    (network, proxy, stream)
}

async fn answers(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").await.is_ok()
        && matches!(timeout(Duration::from_millis(300), stream.read_u8()).await, Ok(Ok(b'x')))
}

#[tokio::test]
async fn bytes_pass_both_ways_and_so_does_the_end() {
    let (_network, _proxy, mut stream) = proxied().await;
    let sent: Vec<u8> = (0..1_000_000u32).map(|number| number as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let send = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(send, reader.read_to_end(&mut received));
    read.unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn a_cut_holds_back_one_direction_until_it_is_healed() {
    for (from, to) in [(Node::Client, SERVER), (SERVER, Node::Client)] {
        let (network, _proxy, mut stream) = proxied().await;
        assert!(answers(&mut stream).await);
        network.cut(from, to);
        assert!(!answers(&mut stream).await);
        network.heal(from, to);
        // What was sent into the cut arrives.
        let late = timeout(Duration::from_secs(5), stream.read_u8()).await;
        assert_eq!(late.expect("the byte arrives").unwrap(), b'x');
    }
}

#[tokio::test]
async fn other_links_are_not_cut() {
    let (network, _proxy, mut stream) = proxied().await;
    network.cut(Node::Index(1), SERVER);
    network.cut(SERVER, Node::Index(1));
    assert!(answers(&mut stream).await);
}

#[tokio::test]
async fn a_delayed_link_is_late_and_in_order() {
    let (network, _proxy, mut stream) = proxied().await;
    network.delay(Node::Client, SERVER, Duration::from_millis(100));
    let started = Instant::now();
    for byte in 0..20u8 {
        stream.write_u8(byte).await.unwrap();
    }
    assert_eq!(stream.read_u8().await.unwrap(), 0);
    assert!(started.elapsed() >= Duration::from_millis(100));
    // Taken back: what waits stays in front of what comes.
    network.heal_all();
    stream.write_u8(20).await.unwrap();
    for byte in 1..21u8 {
        assert_eq!(stream.read_u8().await.unwrap(), byte);
    }
}

#[tokio::test]
async fn a_reset_closes_what_there_is_and_nothing_new() {
    let (network, proxy, mut stream) = proxied().await;
    assert!(answers(&mut stream).await);
    network.reset(SERVER);
    assert!(!answers(&mut stream).await);
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(answers(&mut second).await);
}

#[tokio::test]
async fn connections_are_known_by_their_process() {
    let (network, proxy, mut stream) = proxied().await;
    // The other end of the connection is a process that sends what it reads: `bash`, with the connection as a file.
    let script =
        format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -r line; echo $line >&3; head -c 3 <&3", proxy.address().port());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    network.set_process(Node::Index(2), child.id().unwrap());
    network.cut(Node::Index(2), SERVER);
    // This process is not cut, the child is.
    assert!(answers(&mut stream).await);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"ab\n").await.unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut received = [0; 3];
    assert!(timeout(Duration::from_millis(300), output.read_exact(&mut received)).await.is_err());
    network.heal(Node::Index(2), SERVER);
    timeout(Duration::from_secs(5), output.read_exact(&mut received)).await.expect("it is healed").unwrap();
    assert_eq!(&received, b"ab\n");
}
