//! One request at a time: what each command does, and what each fault is answered with.

use std::sync::Arc;

use ashlar::device::memory::{Call, MemoryDevice};
use ashlar::device::{Device, DeviceError, DeviceInfo, Pieces, Run};
use ashlar::nbd::Options;
use async_trait::async_trait;
use bytes::Bytes;

use crate::client::{Client, EINVAL, EIO, ENOSPC, EPERM, ESHUTDOWN, FAST_ZERO, FUA, NO_HOLE, cmd, request};
use crate::world::{Gate, SIZE, World, read_only};

/// Shows that client and server are still in step.
async fn in_step(client: &mut Client) {
    client.send(&request(0, cmd::READ, 0x1234, 0, 16)).await;
    let reply = client.reply().await;
    assert_eq!((reply.error, reply.cookie), (0, 0x1234));
    client.bytes(16).await;
}

/// A world whose device answers at once and tells what it was asked.
async fn watched() -> (World, Gate) {
    let gate = Gate::default();
    let world = World::of(Options::default(), MemoryDevice::new(SIZE).with_hook(gate.hook(|_| false))).await;
    (world, gate)
}

#[tokio::test(start_paused = true)]
async fn fault_10_any_alignment_down_to_one_byte_reads_what_was_written() {
    let world = World::small().await;
    let mut client = world.attach().await;
    let mut model = vec![0; SIZE as usize];
    for (round, (offset, len)) in [(0, 1), (4095, 2), (511, 513), (1, 70_000), (4096, 4096)].into_iter().enumerate() {
        let data: Vec<u8> = (0..len).map(|at| (at * 7 + round) as u8 | 1).collect();
        assert_eq!(client.write(0, offset as u64, &data).await, 0);
        model[offset..offset + len].copy_from_slice(&data);
        assert_eq!(client.read(0, 80_001).await.unwrap(), model[..80_001]);
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r1_a_wrong_magic_closes() {
    let world = World::small().await;
    let mut client = world.attach().await;
    let mut bad = request(0, cmd::READ, 1, 0, 16);
    bad[3] ^= 1;
    client.send(&bad).await;
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r4_k23_fault_4_unknown_commands_are_invalid_and_the_next_request_is_understood() {
    let world = World::small().await;
    let mut client = world.attach().await;
    for command in [7, 8, 9, 99, 0xffff] {
        assert_eq!(client.call(0, command, 0, 4096).await, EINVAL);
        in_step(&mut client).await;
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r5_r6_fault_5_each_flag_on_each_command() {
    let world = World::small().await;
    let mut client = world.attach().await;
    for bit in 0..16 {
        let flags = 1 << bit;
        let expected = |allowed: u16| if flags & !allowed == 0 { 0 } else { EINVAL };
        for command in [cmd::TRIM, cmd::CACHE] {
            assert_eq!(client.call(flags, command, 0, 512).await, expected(FUA), "{command} {bit}");
        }
        assert_eq!(client.call(flags, cmd::FLUSH, 0, 0).await, expected(FUA), "{bit}");
        assert_eq!(client.call(flags, cmd::WRITE_ZEROES, 0, 512).await, expected(FUA | NO_HOLE | FAST_ZERO), "{bit}");
        assert_eq!(client.write(flags, 0, &[7; 512]).await, expected(FUA), "{bit}");
        let read = client.call(flags, cmd::READ, 0, 16).await;
        assert_eq!(read, expected(FUA), "{bit}");
        if read == 0 {
            client.bytes(16).await;
        }
        in_step(&mut client).await;
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r6_r7_fua_and_no_hole_reach_the_device() {
    let (world, gate) = watched().await;
    let mut client = world.attach().await;
    assert_eq!(client.write(FUA, 1, b"abc").await, 0);
    assert_eq!(client.write(0, 2, b"abc").await, 0);
    assert_eq!(client.call(FUA, cmd::TRIM, 3, 4).await, 0);
    assert_eq!(client.call(0, cmd::WRITE_ZEROES, 5, 6).await, 0);
    assert_eq!(client.call(FUA | NO_HOLE, cmd::WRITE_ZEROES, 5, 6).await, 0);
    assert_eq!(client.call(FUA, cmd::CACHE, 7, 8).await, 0);
    assert_eq!(client.call(FUA, cmd::FLUSH, 0, 0).await, 0);
    let expected = [
        Call::Write { offset: 1, len: 3, fua: true },
        Call::Write { offset: 2, len: 3, fua: false },
        Call::Trim { offset: 3, len: 4, fua: true },
        Call::WriteZeroes { offset: 5, len: 6, no_hole: false, fua: false },
        Call::WriteZeroes { offset: 5, len: 6, no_hole: true, fua: true },
        Call::Cache { offset: 7, len: 8 },
        Call::Flush,
    ];
    assert_eq!(gate.calls(), expected);
    client.disconnect().await;
    world.all_gone().await;
}

/// F11: advertised with WRITE_ZEROES. K16: zeroing is never slower than a write of zeroes, so it is never refused; nor is
/// it with NO_HOLE, nor off every block, nor for 4 GiB.
#[tokio::test(start_paused = true)]
async fn f11_k16_fault_7_fast_zero_is_always_done() {
    let gate = Gate::default();
    let world = World::of(Options::default(), MemoryDevice::new(1 << 40).with_hook(gate.hook(|_| false))).await;
    let mut client = world.connect();
    assert_eq!(client.go("disk0").await.flags & (1 << 11 | 1 << 6), 1 << 11 | 1 << 6);
    for (flags, offset, len) in [(0, 0, 4096), (NO_HOLE, 0, 4096), (0, 1, 1), (NO_HOLE | FUA, 5, u32::MAX)] {
        assert_eq!(client.call(flags | FAST_ZERO, cmd::WRITE_ZEROES, offset, len).await, 0);
        let (no_hole, fua) = (flags & NO_HOLE != 0, flags & FUA != 0);
        assert_eq!(gate.calls().pop(), Some(Call::WriteZeroes { offset, len: u64::from(len), no_hole, fua }));
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn r10_requests_of_no_bytes_succeed_and_do_not_reach_the_device() {
    let (world, gate) = watched().await;
    let mut client = world.attach().await;
    for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        for offset in [0, 1, SIZE, u64::MAX] {
            assert_eq!(client.call(0, command, offset, 0).await, 0);
        }
    }
    assert_eq!(gate.calls(), []);
    in_step(&mut client).await;
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn f2_k17_fault_11_a_read_only_export_says_so_and_refuses_changes() {
    let world = World::of(Options::default(), MemoryDevice::with_info(read_only())).await;
    let mut client = world.connect();
    assert_eq!(client.go("disk0").await.flags, 0x50f);
    assert_eq!(client.write(0, 0, &[1; 512]).await, EPERM);
    assert_eq!(client.write(0, SIZE, &[1; 512]).await, EPERM);
    assert_eq!(client.call(0, cmd::TRIM, 0, 512).await, EPERM);
    assert_eq!(client.call(0, cmd::WRITE_ZEROES, SIZE, 512).await, EPERM);
    assert_eq!(client.call(0, cmd::FLUSH, 0, 0).await, 0);
    in_step(&mut client).await;
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn s7_s8_k8_past_the_end_is_an_error_and_the_payload_is_thrown_away() {
    let (world, gate) = watched().await;
    let mut client = world.attach().await;
    for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 511, 512), (1 << 63, 512)] {
        assert_eq!(client.write(0, offset, &vec![0x25; len]).await, ENOSPC);
        assert_eq!(client.call(0, cmd::WRITE_ZEROES, offset, len as u32).await, ENOSPC);
        for command in [cmd::READ, cmd::TRIM, cmd::CACHE] {
            assert_eq!(client.call(0, command, offset, len as u32).await, EINVAL);
        }
    }
    assert_eq!(gate.calls(), []);
    assert_eq!(client.read(SIZE - 1, 1).await, Ok(vec![0]));
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn s3_s5_payloads_up_to_32_mib_are_served_and_larger_ones_are_an_error() {
    let world = World::of(Options::default(), MemoryDevice::new(1 << 30)).await;
    let mut client = world.attach().await;
    let data = vec![0x5a; 32 << 20];
    assert_eq!(client.write(0, 512, &data).await, 0);
    assert!(client.read(512, 32 << 20).await.unwrap() == data);

    assert_eq!(client.write(0, 0, &vec![0x25; (32 << 20) + 1]).await, EINVAL);
    assert_eq!(client.read(0, (32 << 20) + 1).await, Err(EINVAL));
    assert_eq!(client.read(511, 2).await, Ok(vec![0, 0x5a]), "nothing of the refused payload was written");
    client.disconnect().await;
    world.all_gone().await;
}

/// A minimum block size that a client was told, or has not asked for, is advice: what is smaller and off it is done all the same,
/// to the byte.
#[tokio::test(start_paused = true)]
async fn s4_s10_a_minimum_block_size_is_not_enforced_on_those_who_ignore_it() {
    let options = Options { minimum_block_size: 64 << 10, ..Options::default() };
    let world = World::of(options, MemoryDevice::new(SIZE)).await;
    let mut client = world.attach().await;
    let mut model = vec![0x11; 256 << 10];
    assert_eq!(client.write(0, 0, &model).await, 0);
    for (offset, len) in [(1, 1), (512, 512), (65_535, 2), (70_001, 4096)] {
        assert_eq!(client.write(0, offset, &vec![0x77; len]).await, 0);
        model[offset as usize..][..len].fill(0x77);
        assert_eq!(client.read(offset, len as u32).await.unwrap(), vec![0x77; len]);
    }
    assert_eq!(client.call(0, cmd::WRITE_ZEROES, 100_001, 777).await, 0);
    model[100_001..100_778].fill(0);
    assert!(client.read(0, 256 << 10).await.unwrap() == model);
    client.disconnect().await;
    world.all_gone().await;
}

/// A hint: taken with FUA, of any length, and whatever is asked for, what the export holds stays as it is.
#[tokio::test(start_paused = true)]
async fn k13_cache_changes_nothing() {
    let (world, gate) = watched().await;
    let mut client = world.attach().await;
    assert_eq!(client.write(0, 4000, &[5; 8192]).await, 0);
    for (flags, offset, len, error) in [
        (0, 0, SIZE as u32, 0),
        (FUA, 4001, 1, 0),
        (NO_HOLE, 0, 4096, EINVAL),
        (FAST_ZERO, 0, 4096, EINVAL),
        (0, SIZE - 1, 2, EINVAL),
        (0, 0, u32::MAX, EINVAL),
    ] {
        assert_eq!(client.call(flags, cmd::CACHE, offset, len).await, error, "{flags} {offset} {len}");
    }
    let cached = [Call::Cache { offset: 0, len: SIZE }, Call::Cache { offset: 4001, len: 1 }];
    assert_eq!(gate.calls()[1..], cached, "after the write");
    let content = client.read(0, 16 << 10).await.unwrap();
    assert!(content[..4000].iter().chain(&content[12_192..]).all(|&byte| byte == 0));
    assert_eq!(content[4000..12_192], [5; 8192]);
    client.disconnect().await;
    world.all_gone().await;
}

/// On an export smaller than 32 MiB the range decides, not the payload.
#[tokio::test(start_paused = true)]
async fn s5_a_payload_larger_than_the_export_is_refused_and_thrown_away() {
    let world = World::small().await;
    let mut client = world.attach().await;
    assert_eq!(client.write(0, 0, &vec![1; 2 * SIZE as usize]).await, ENOSPC);
    in_step(&mut client).await;
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn s6_fault_6_trim_zero_and_cache_take_any_length() {
    let gate = Gate::default();
    let device = MemoryDevice::new(1 << 50).with_hook(gate.hook(|_| false));
    let world = World::of(Options::default(), device).await;
    let mut client = world.attach().await;
    assert_eq!(client.write(0, (1 << 40) + 5, b"x").await, 0);
    for len in [u32::MAX, u32::MAX - 511] {
        assert_eq!(client.call(0, cmd::TRIM, 1 << 40, len).await, 0);
        assert_eq!(client.call(0, cmd::WRITE_ZEROES, 1 << 40, len).await, 0);
        assert_eq!(client.call(0, cmd::CACHE, 1 << 40, len).await, 0);
    }
    assert!(gate.calls().contains(&Call::Trim { offset: 1 << 40, len: u64::from(u32::MAX), fua: false }));
    assert_eq!(client.read((1 << 40) + 5, 1).await, Ok(vec![0]));
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k11_flush_with_an_offset_or_a_length_is_invalid() {
    let world = World::small().await;
    let mut client = world.attach().await;
    assert_eq!(client.call(0, cmd::FLUSH, 1, 0).await, EINVAL);
    assert_eq!(client.call(0, cmd::FLUSH, 0, 1).await, EINVAL);
    assert_eq!(client.call(0, cmd::FLUSH, 0, 0).await, 0);
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k12_k14_fault_8_trim_gives_up_whole_blocks_and_zeroes_are_exact() {
    let world = World::small().await;
    let mut client = world.attach().await;
    assert_eq!(client.write(0, 0, &[9; 5 * 4096]).await, 0);
    let mut model = vec![9; 5 * 4096];

    assert_eq!(client.call(0, cmd::TRIM, 100, 2 * 4096).await, 0);
    model[4096..2 * 4096].fill(0);
    assert_eq!(client.read(0, 5 * 4096).await.unwrap(), model);

    assert_eq!(client.call(0, cmd::WRITE_ZEROES, 2 * 4096 + 100, 4096 + 5).await, 0);
    model[2 * 4096 + 100..3 * 4096 + 105].fill(0);
    assert_eq!(client.read(0, 5 * 4096).await.unwrap(), model);
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn k1_fault_1_a_read_that_fails_gives_an_error_without_data() {
    let gate = Gate::default();
    let device = MemoryDevice::new(SIZE).with_hook(gate.hook(|call| matches!(call, Call::Read { offset: 4096, .. })));
    let world = World::of(Options::default(), device).await;
    let mut client = world.attach().await;
    client.send(&request(0, cmd::READ, 5, 4096, 4096)).await;
    gate.holds(1).await;
    gate.release(Err(DeviceError::Io("the store is away".to_owned())));
    assert_eq!(client.reply().await.error, EIO);
    in_step(&mut client).await;
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn every_failure_of_a_device_has_its_number() {
    let gate = Gate::default();
    let device = MemoryDevice::new(SIZE).with_hook(gate.hook(|_| true));
    let world = World::of(Options::default(), device).await;
    let mut client = world.attach().await;
    for (error, number) in [
        (DeviceError::Io("bad frame".to_owned()), EIO),
        (DeviceError::Fenced("taken by another server".to_owned()), EIO),
        (DeviceError::ReadOnly("a snapshot".to_owned()), EPERM),
        (DeviceError::ShuttingDown, ESHUTDOWN),
    ] {
        client.send(&request(0, cmd::FLUSH, 6, 0, 0)).await;
        gate.holds(1).await;
        gate.release(Err(error));
        assert_eq!(client.reply().await.error, number);
    }
    client.disconnect().await;
    world.all_gone().await;
}

/// R9 is the device's promise; the session's part is that neither an error nor a late success is lost.
#[tokio::test(start_paused = true)]
async fn r8_r9_flush_is_answered_when_the_device_has_flushed_and_as_it_says() {
    let gate = Gate::default();
    let device = MemoryDevice::new(SIZE).with_hook(gate.hook(|call| *call == Call::Flush));
    let world = World::of(Options::default(), device).await;
    let mut client = world.attach().await;
    assert_eq!(client.write(0, 0, b"x").await, 0);
    for (result, number) in [(Err(DeviceError::Io("no store".to_owned())), EIO), (Ok(()), 0)] {
        client.send(&request(0, cmd::FLUSH, 6, 0, 0)).await;
        gate.holds(1).await;
        in_step(&mut client).await; // that was answered, and the flush was not
        gate.release(result);
        assert_eq!(client.reply().await.error, number);
    }
    client.disconnect().await;
    world.all_gone().await;
}

/// A device with faults of its own.
struct Faulty;

#[async_trait]
impl Device for Faulty {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { size: SIZE, block_size: 4096, read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError> {
        let pieces = |pieces: &[(u8, usize)]| pieces.iter().map(|&(fill, len)| Bytes::from(vec![fill; len])).collect();
        match offset {
            0 => Ok(pieces(&[(1, 3), (1, 0), (2, len as usize - 3)])),
            1 => Ok(pieces(&[(1, len as usize - 1)])),
            2 => Ok(pieces(&[(1, len as usize + 1)])),
            3 => panic!("at once"),
            _ => {
                tokio::task::yield_now().await;
                panic!("after a while")
            }
        }
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn cache(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Run>, DeviceError> {
        Ok(Vec::new())
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_panics_or_miscounts_costs_one_error_and_not_the_connection() {
    let exports = ashlar::device::memory::MemoryExports::new().with("disk0", "", Arc::new(Faulty));
    let world = World::new(Options::default(), exports).await;
    let mut client = world.attach().await;
    for offset in 1..=4 {
        assert_eq!(client.read(offset, 16).await, Err(EIO), "{offset}");
    }
    assert_eq!(client.read(0, 5).await, Ok(vec![1, 1, 1, 2, 2]));
    client.disconnect().await;
    world.all_gone().await;
}
