//! BLOCK_STATUS with `base:allocation` and `ashlar:changed`.

use std::sync::Arc;

use ashlar::device::memory::{Call, MemoryDevice, MemoryExports};
use ashlar::device::{Allocation, DeviceInfo, RUNS_MAX, Run};
use ashlar::nbd::Options;

use crate::client::{
    Chunk, Client, EINVAL, EIO, FUA, REQ_ONE, all_options, cmd, contexts_data, extended, kind, opt, option, rep,
    request,
};
use crate::world::{Gate, SIZE, Scripted, World, read_only};

const DATA: u64 = 0;
const ZERO: u64 = 2;
const HOLE: u64 = 3;

/// The descriptors of one request, which are not split up.
async fn status(client: &mut Client, flags: u16, offset: u64, len: u32) -> Result<Vec<(u64, u64)>, u32> {
    client.send(&request(flags, cmd::BLOCK_STATUS, 4, offset, len)).await;
    let chunk = client.chunk().await;
    assert!(chunk.is_last && chunk.cookie == 4);
    if chunk.kind != kind::STATUS {
        return Err(chunk.failure().0);
    }
    assert_eq!((chunk.number(0, 4), chunk.payload.len() % 8), (1, 4), "the context's number, and descriptors");
    Ok((4..chunk.payload.len()).step_by(8).map(|at| (chunk.number(at, 4), chunk.number(at + 4, 4))).collect())
}

fn scripted(block_size: u32, runs: &[(u64, Allocation)]) -> Scripted {
    let runs: Vec<Run> = runs.iter().map(|&(len, allocation)| Run { len, allocation }).collect();
    let size = runs.iter().map(|run| run.len).sum();
    Scripted { info: DeviceInfo { size, block_size, read_only: false }, runs, bad: None }
}

#[tokio::test(start_paused = true)]
async fn k18_k19_k22_descriptors_cover_what_was_asked_for_and_no_more() {
    let runs =
        [(8192, Allocation::Data), (4096, Allocation::Zero), (1 << 20, Allocation::Hole), (4096, Allocation::Data)];
    let world = World::of(Options::default(), scripted(4096, &runs)).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    let all = [(8192, DATA), (4096, ZERO), (1 << 20, HOLE), (4096, DATA)];
    let size = all.iter().map(|all| all.0).sum::<u64>() as u32;
    assert_eq!(status(&mut client, 0, 0, size).await.unwrap(), all);
    assert_eq!(status(&mut client, FUA, 0, size).await.unwrap(), all, "R6");
    assert_eq!(status(&mut client, REQ_ONE, 0, size).await.unwrap(), all[..1]);
    assert_eq!(status(&mut client, 0, 8191, 4098).await.unwrap(), [(1, DATA), (4096, ZERO), (1, HOLE)], "unaligned");
    assert_eq!(status(&mut client, REQ_ONE, 8193, 1).await.unwrap(), [(1, ZERO)]);
    assert_eq!(status(&mut client, 0, u64::from(size) - 1, 1).await.unwrap(), [(1, DATA)]);
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k21_r10_no_bytes_and_bytes_past_the_end_are_invalid() {
    let world = World::small().await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    for (offset, len) in [
        (0, 0),
        (SIZE, 0),
        (SIZE, 1),
        (SIZE - 1, 2),
        (0, u32::MAX),
        (1, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 511, 512),
        (1 << 63, 4096),
    ] {
        assert_eq!(status(&mut client, 0, offset, len).await, Err(EINVAL), "{offset} {len}");
        assert_eq!(status(&mut client, REQ_ONE, offset, len).await, Err(EINVAL), "{offset} {len}");
    }
    for bit in (0..16).filter(|bit| ![0, 3].contains(bit)) {
        assert_eq!(status(&mut client, 1 << bit, 0, 512).await, Err(EINVAL), "R5: bit {bit}");
    }
    assert_eq!(status(&mut client, 0, 0, SIZE as u32).await, Ok(vec![(SIZE, HOLE)]));
    client.disconnect().await;
    world.all_gone().await;
}

/// Lengths near 2^32 on a device that is larger: nothing wraps.
#[tokio::test(start_paused = true)]
async fn s6_the_longest_status_there_can_be() {
    let gate = Gate::default();
    let world = World::of(Options::default(), MemoryDevice::new(1 << 50).with_hook(gate.hook(|_| false))).await;
    let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
    for (offset, len) in
        [(0, u32::MAX), (1, u32::MAX), (511, u32::MAX - 511), ((1 << 50) - u64::from(u32::MAX), u32::MAX)]
    {
        for (flags, most) in [(0, RUNS_MAX), (REQ_ONE, 1)] {
            assert_eq!(status(&mut client, flags, offset, len).await, Ok(vec![(u64::from(len), HOLE)]));
            assert_eq!(gate.calls().pop(), Some(Call::Extents { offset, len: u64::from(len), most }));
        }
    }
    client.send(&[request(0, cmd::WRITE, 1, 1 << 32, 1), vec![1]].concat()).await;
    client.reply().await;
    assert_eq!(
        status(&mut client, 0, (1 << 32) - 5, u32::MAX).await.unwrap(),
        [(5, HOLE), (1 << 20, DATA), ((1 << 32) - (1 << 20) - 6, HOLE)]
    );
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k18_without_a_context_it_is_invalid() {
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(SIZE))).with(
        "disk1",
        "",
        Arc::new(MemoryDevice::new(SIZE)),
    );
    let world = World::new(Options::default(), exports).await;
    let structured = option(opt::STRUCTURED_REPLY, &[]);
    let nothing = option(opt::SET_META_CONTEXT, &contexts_data("disk0", &[]));
    let unknown = option(opt::SET_META_CONTEXT, &contexts_data("nope", &["base:allocation"]));
    // Not asked for; selected for another export (O27); cleared; lost to an option that failed.
    for (options, replies) in [
        (structured.clone(), 1),
        (all_options(opt::STRUCTURED_REPLY, "disk1"), 3),
        ([all_options(opt::STRUCTURED_REPLY, "disk0"), nothing].concat(), 4),
        ([all_options(opt::STRUCTURED_REPLY, "disk0"), unknown].concat(), 4),
    ] {
        let mut client = world.connect();
        client.greet().await;
        client.send(&options).await;
        for _ in 0..replies {
            client.option_reply().await;
        }
        client.only_go("disk0").await;
        assert_eq!(status(&mut client, 0, 0, 512).await, Err(EINVAL));
        client.disconnect().await;
    }
    let mut simple = world.attach().await;
    assert_eq!(simple.call(0, cmd::BLOCK_STATUS, 0, 512).await, EINVAL);
    simple.disconnect().await;
    world.all_gone().await;
}

/// A host may look at what another has attached, and select contexts for it: only GO makes it wait (M5).
#[tokio::test(start_paused = true)]
async fn o28_contexts_of_an_export_that_another_host_has_can_be_selected() {
    let world = World::small().await;
    let _first = world.attach().await;
    let host = ashlar::nbd::Host::Remote(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5)));
    let mut second = world.connect_from(host, 4096);
    second.greet().await;
    second.send(&all_options(opt::STRUCTURED_REPLY, "disk0")).await;
    for expected in [rep::ACK, rep::META_CONTEXT, rep::ACK] {
        assert_eq!(second.option_reply().await.reply_type, expected);
    }
}

/// Rule K20: QEMU's client calls finer descriptors a fault of the server.
#[tokio::test(start_paused = true)]
async fn k20_descriptors_are_multiples_of_the_minimum_block_size_that_was_told() {
    let fine = [(512, Allocation::Hole), (512, Allocation::Data), (7168, Allocation::Hole), (8192, Allocation::Zero)];
    for (minimum, expected) in [
        (512, vec![(512, HOLE), (512, DATA), (7168, HOLE), (8192, ZERO)]),
        (4096, vec![(4096, DATA), (4096, HOLE), (8192, ZERO)]),
        (16384, vec![(16384, DATA)]),
    ] {
        let options = Options { minimum_block_size: minimum, ..Options::default() };
        let world = World::of(options, scripted(512, &fine)).await;
        let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
        assert_eq!(status(&mut client, 0, 0, 16384).await.unwrap(), expected);
        assert_eq!(status(&mut client, REQ_ONE, 0, 16384).await.unwrap(), expected[..1]);
        // Whoever does not obey is served all the same.
        client.send(&request(0, cmd::READ, 1, 511, 2)).await;
        assert_eq!(client.chunk().await.payload[8..], [0, 7]);
        client.disconnect().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_knows_nothing_or_too_much_costs_one_error() {
    for runs in [vec![], vec![(0, Allocation::Data)]] {
        let device = Scripted { info: read_only(), ..scripted(512, &runs) };
        let world = World::of(Options::default(), device).await;
        let mut client = world.attach_with(opt::STRUCTURED_REPLY).await;
        assert_eq!(status(&mut client, 0, 0, 512).await, Err(EIO));
        client.disconnect().await;
    }
}

/// A client with these contexts, and the numbers that it was told.
async fn with_contexts(world: &World, style: u32, queries: &[&str]) -> (Client, Vec<(u64, String)>) {
    let mut client = world.connect();
    client.greet().await;
    client.send(&[option(style, &[]), option(opt::SET_META_CONTEXT, &contexts_data("disk0", queries))].concat()).await;
    assert_eq!(client.option_reply().await.reply_type, rep::ACK);
    let mut told = Vec::new();
    loop {
        let reply = client.option_reply().await;
        if reply.reply_type == rep::ACK {
            break;
        }
        assert_eq!(reply.reply_type, rep::META_CONTEXT);
        let (number, name) = reply.data.split_at(4);
        told.push((u32::from_be_bytes(number.try_into().unwrap()).into(), String::from_utf8(name.to_vec()).unwrap()));
    }
    client.only_go("disk0").await;
    (client, told)
}

const MONDAY: &str = "ashlar:changed:monday";

/// K18: a chunk for each context that was selected, with its number, and the last says that it is the last.
#[tokio::test(start_paused = true)]
async fn k18_what_has_changed_is_a_chunk_of_its_own() {
    let runs = [(8192, Allocation::Data), (4096, Allocation::Zero), (8192, Allocation::Hole), (4096, Allocation::Data)];
    let world = World::of(Options::default(), scripted(4096, &runs)).await;
    for (style, bytes, begin) in [(opt::STRUCTURED_REPLY, 4, 4), (opt::EXTENDED_HEADERS, 8, 8)] {
        let is_extended = style == opt::EXTENDED_HEADERS;
        let ask = |flags, offset, len| match is_extended {
            true => extended(flags, cmd::BLOCK_STATUS, 4, offset, u64::from(len)),
            false => request(flags, cmd::BLOCK_STATUS, 4, offset, len),
        };
        let (mut client, told) = with_contexts(&world, style, &[MONDAY, "base:allocation"]).await;
        assert_eq!(told, [(1, "base:allocation".to_owned()), (2, MONDAY.to_owned())]);
        let descriptors = |chunk: &Chunk| -> Vec<(u64, u64)> {
            let pairs = (begin..chunk.payload.len()).step_by(2 * bytes);
            pairs.map(|at| (chunk.number(at, bytes), chunk.number(at + bytes, bytes))).collect()
        };
        for (flags, offset, len, allocation, changed) in [
            (0, 0, 24576, 4, vec![(8192, 1), (12288, 0), (4096, 1)]),
            (REQ_ONE, 0, 24576, 1, vec![(8192, 1)]),
            (0, 8191, 4098, 3, vec![(1, 1), (4097, 0)]),
        ] {
            client.send(&ask(flags, offset, len)).await;
            let chunks = client.chunks().await;
            let found: Vec<_> = chunks.iter().map(|chunk| (chunk.number(0, 4), chunk.is_last)).collect();
            assert_eq!(found, [(1, false), (2, true)]);
            assert_eq!((descriptors(&chunks[0]).len(), descriptors(&chunks[1])), (allocation, changed));
        }
        drop(client);
        // Alone it is what the request is about, and `base:allocation` is not.
        let (mut client, told) = with_contexts(&world, style, &[MONDAY]).await;
        assert_eq!(told, [(2, MONDAY.to_owned())]);
        client.send(&ask(0, 0, 512)).await;
        let chunk = client.chunk().await;
        assert_eq!((chunk.is_last, chunk.number(0, 4), descriptors(&chunk)), (true, 2, vec![(512, 1)]));
        for (offset, len) in [(0, 0), (24576, 1), (1, 24576), (0, u32::MAX), (u64::MAX, 1)] {
            client.send(&ask(0, offset, len)).await;
            assert_eq!(client.chunk().await.failure().0, EINVAL, "{offset} {len}");
        }
    }
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k18_a_version_that_is_gone_is_an_error_in_words_and_one_that_never_was_is_not_offered() {
    let world = World::of(Options::default(), scripted(4096, &[(8192, Allocation::Data)])).await;
    let (mut client, told) =
        with_contexts(&world, opt::STRUCTURED_REPLY, &["base:allocation", "ashlar:changed:tuesday"]).await;
    assert_eq!(told.len(), 2);
    client.send(&request(0, cmd::BLOCK_STATUS, 4, 0, 512)).await;
    let (errno, text, _) = client.chunk().await.failure();
    assert_eq!((errno, text.as_str()), (EIO, "snapshot tuesday was deleted"));
    client.send(&request(0, cmd::READ, 5, 0, 512)).await;
    assert_eq!(client.chunk().await.payload.len(), 8 + 512, "the connection goes on");
    client.disconnect().await;
    let unknown = ["ashlar:changed:sunday", "ashlar:changed:", "ashlar:changed", "ashlar:", "ashlar:changed:Monday"];
    let mut asked = world.connect();
    asked.greet().await;
    assert_eq!(asked.ask(opt::STRUCTURED_REPLY, &[]).await, rep::ACK);
    assert_eq!(asked.ask(opt::SET_META_CONTEXT, &contexts_data("disk0", &unknown)).await, rep::ACK);
    asked.only_go("disk0").await;
    assert_eq!(status(&mut asked, 0, 0, 512).await, Err(EINVAL));
    asked.disconnect().await;
    world.all_gone().await;
}

/// Rule K20, the other way round than for data: a unit of which a part has changed has changed.
#[tokio::test(start_paused = true)]
async fn k20_a_unit_of_which_a_part_has_changed_has_changed() {
    let fine = [(512, Allocation::Hole), (512, Allocation::Data), (7168, Allocation::Hole), (8192, Allocation::Zero)];
    for (minimum, expected) in [(512, vec![(512, 0), (512, 1), (15360, 0)]), (4096, vec![(4096, 1), (12288, 0)])] {
        let world =
            World::of(Options { minimum_block_size: minimum, ..Options::default() }, scripted(512, &fine)).await;
        let (mut client, _) = with_contexts(&world, opt::STRUCTURED_REPLY, &[MONDAY]).await;
        client.send(&request(0, cmd::BLOCK_STATUS, 4, 0, 16384)).await;
        let chunk = client.chunk().await;
        let found: Vec<_> =
            (4..chunk.payload.len()).step_by(8).map(|at| (chunk.number(at, 4), chunk.number(at + 4, 4))).collect();
        assert_eq!(found, expected);
        client.disconnect().await;
    }
}
