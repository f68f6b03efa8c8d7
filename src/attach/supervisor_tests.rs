use std::io;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::attach::handshake::Refusal;
use crate::units::Epoch;

const FLAGS: u16 = transmission_flag::HAS_FLAGS
    | transmission_flag::SEND_FLUSH
    | transmission_flag::SEND_FUA
    | transmission_flag::CAN_MULTI_CONN;

fn plan(servers: usize, connections: usize) -> Plan {
    Plan {
        volume: "db".into(),
        servers,
        device: Some(3),
        connections,
        sector_size: None,
        read_only: false,
        timeout: Duration::ZERO,
        dead_timeout: Duration::from_secs(600),
    }
}

fn identity(epoch: u64, since: u64) -> Identity {
    let opening = Uuid::from_u128(u128::from(epoch));
    Identity { volume: Uuid::from_u128(1), epoch: Epoch(epoch), opening, unbroken_since: Epoch(since) }
}

fn offer(epoch: u64, since: u64) -> Offer {
    let identity = Some(identity(epoch, since));
    Offer { size: 1 << 20, flags: FLAGS, minimum_block: 1, preferred_block: 65536, identity, is_leaving: false }
}

fn unreachable() -> Event {
    Event::Dialed(Err(DialError::Unreachable(io::Error::from(io::ErrorKind::ConnectionRefused))))
}

/// Effects without words and timers.
fn deeds(effects: Vec<Effect>) -> Vec<Effect> {
    effects.into_iter().filter(|effect| !matches!(effect, Effect::Say(..) | Effect::Wake(..))).collect()
}

fn backend() -> String {
    format!("ashlar:db:{}", Uuid::from_u128(1))
}

fn hand_over() -> Effect {
    Effect::HandOver { device: 3, backend: backend() }
}

fn look_attached() -> Effect {
    Effect::LookAttached { device: 3, backend: backend() }
}

const READ: Effect = Effect::Read { device: 3, sector_size: 4096 };
const WAIT: Effect = Effect::WaitInKernel { device: 3, sector_size: 4096 };

fn busy(busy: bool) -> Effect {
    Effect::KeepBusy { device: 3, sector_size: 4096, busy }
}

fn resize(size: u64) -> Effect {
    Effect::Resize { device: 3, backend: backend(), size, sector_size: 4096 }
}

/// A device that is attached.
fn attached(plan: Plan) -> Supervisor {
    let (mut supervisor, first) = Supervisor::new(plan);
    assert_eq!(first, [Effect::Dial(0)]);
    let connect = deeds(supervisor.handle(Event::Dialed(Ok(offer(5, 5)))));
    assert!(matches!(&connect[..], [Effect::Connect(setup)] if setup.sector_size == 4096 && setup.size == 1 << 20));
    assert_eq!(deeds(supervisor.handle(Event::Connected(Ok(3)))), [READ]);
    assert_eq!(deeds(supervisor.handle(Event::Read(Ok(())))), [Effect::Ready(3)]);
    supervisor
}

/// One whose server is gone, and back, and that waits for the kernel.
fn draining(connections: usize) -> Supervisor {
    let mut supervisor = attached(plan(1, connections));
    let lost = deeds(supervisor.handle(Event::SocketEnded(1)));
    assert_eq!(lost, [Effect::EndSockets, look_attached(), Effect::Dial(0)]);
    assert_eq!(deeds(supervisor.handle(Event::Dialed(Ok(offer(6, 5))))), []);
    supervisor
}

fn ended(effects: &[Effect]) -> Option<&Result<(), String>> {
    effects.iter().find_map(|effect| if let Effect::End(outcome) = effect { Some(outcome) } else { None })
}

#[test]
fn new_sockets_are_handed_over_only_when_every_old_one_is_dead() {
    let mut supervisor = draining(2);
    assert_eq!(deeds(supervisor.handle(Event::LinkDead(4))), [], "another device's");
    assert_eq!(deeds(supervisor.handle(Event::LinkDead(3))), []);
    assert_eq!(deeds(supervisor.handle(Event::LinkDead(3))), [hand_over()]);
    assert_eq!(deeds(supervisor.handle(Event::HandedOver(Ok(())))), [READ]);
    assert_eq!(deeds(supervisor.handle(Event::Read(Ok(())))), [resize(1 << 20)], "the size once more, and not before");
    assert_eq!(deeds(supervisor.handle(Event::Resized(Ok(())))), []);
    assert_eq!(supervisor.phase, Phase::Attached);
    // What is said of the sockets before is no news.
    assert_eq!(supervisor.handle(Event::SocketEnded(1)), []);
    assert_eq!(deeds(supervisor.handle(Event::LinkDead(3)))[0], Effect::EndSockets);
}

#[test]
fn a_kernel_that_does_not_say_that_sockets_are_dead_is_waited_for_a_moment() {
    let mut supervisor = draining(1);
    let number = supervisor.phase_number;
    assert_eq!(supervisor.handle(Event::Woke(Timer::Phase(number - 1))), []);
    assert_eq!(deeds(supervisor.handle(Event::Woke(Timer::Phase(number)))), [hand_over()]);
}

#[test]
fn a_connection_that_ends_while_the_kernel_takes_it_is_made_again() {
    let mut supervisor = draining(1);
    supervisor.handle(Event::LinkDead(3));
    assert_eq!(supervisor.handle(Event::SocketEnded(2)), [], "the kernel is busy");
    let lost = deeds(supervisor.handle(Event::HandedOver(Ok(()))));
    assert_eq!(lost, [Effect::EndSockets, look_attached(), Effect::Dial(0)]);
}

#[test]
fn a_read_that_is_late_means_that_the_sockets_were_not_taken() {
    let mut supervisor = draining(1);
    supervisor.handle(Event::LinkDead(3));
    let proving = supervisor.handle(Event::HandedOver(Ok(())));
    assert!(proving.contains(&Effect::Wake(Timer::Phase(supervisor.phase_number), PROOF)));
    let late = deeds(supervisor.handle(Event::Woke(Timer::Phase(supervisor.phase_number))));
    assert_eq!(late, [Effect::EndSockets, look_attached(), Effect::Dial(0)]);
    assert_eq!(deeds(supervisor.handle(Event::LinkDead(3))), [WAIT]);
    assert_eq!(deeds(supervisor.handle(Event::Dialed(Ok(offer(6, 5))))), [hand_over()]);
    // The read is still under way: there is not a second one, and it gets more time.
    let proving = supervisor.handle(Event::HandedOver(Ok(())));
    assert_eq!(deeds(proving.clone()), []);
    assert!(proving.contains(&Effect::Wake(Timer::Phase(supervisor.phase_number), 2 * PROOF)));
    assert_eq!(deeds(supervisor.handle(Event::Read(Ok(())))), [resize(1 << 20)]);
}

#[test]
fn a_server_that_lost_something_ends_the_device() {
    let smaller = Offer { size: 4096, ..offer(6, 5) };
    let other = Offer { identity: Some(Identity { volume: Uuid::from_u128(9), ..identity(6, 5) }), ..offer(6, 5) };
    for (offered, word) in
        [(offer(6, 6), "acknowledged"), (offer(4, 4), "went back"), (smaller, "smaller"), (other, "another volume")]
    {
        let mut supervisor = attached(plan(1, 1));
        supervisor.handle(Event::LinkDead(3));
        assert_eq!(
            deeds(supervisor.handle(Event::Dialed(Ok(offered)))),
            [Effect::EndSockets, Effect::Disconnect(3)],
            "{word}"
        );
        let end = supervisor.handle(Event::Disconnected(Ok(())));
        let outcome = ended(&end).unwrap().as_ref().unwrap_err();
        assert!(outcome.contains(word), "{outcome}");
        assert_eq!(supervisor.handle(Event::Stop), []);
    }
}

#[test]
fn what_it_spoke_to_last_counts_and_not_what_it_saw_first() {
    let mut supervisor = draining(1);
    supervisor.handle(Event::LinkDead(3));
    supervisor.handle(Event::HandedOver(Ok(())));
    supervisor.handle(Event::Read(Ok(())));
    supervisor.handle(Event::Resized(Ok(())));
    supervisor.handle(Event::LinkDead(3));
    // 5 continued in 6; 7 continues 6, of 5 it does not know.
    assert_eq!(deeds(supervisor.handle(Event::Dialed(Ok(offer(7, 6))))), [hand_over()]);
}

#[test]
fn servers_are_tried_in_turn_and_for_ever() {
    let mut supervisor = attached(plan(2, 1));
    assert!(supervisor.handle(Event::LinkDead(3)).contains(&Effect::Dial(0)));
    let mut pauses = Vec::new();
    for _ in 0..30 {
        assert_eq!(deeds(supervisor.handle(unreachable())), [Effect::Dial(1)]);
        let waits = supervisor.handle(unreachable());
        let pause =
            waits.iter().find_map(|effect| if let Effect::Wake(_, pause) = effect { Some(*pause) } else { None });
        pauses.push(pause.unwrap());
        assert_eq!(deeds(waits), [look_attached()]);
        assert_eq!(supervisor.handle(Event::Woke(Timer::Phase(supervisor.phase_number))), [Effect::Dial(0)]);
    }
    assert!(pauses[..20].iter().all(|pause| *pause == PAUSE), "{pauses:?}");
    assert_eq!(pauses[20..22], [2 * PAUSE, 4 * PAUSE]);
    assert_eq!(pauses[29], PAUSE_MAX);
}

#[test]
fn why_a_server_cannot_be_had_is_said_once() {
    let mut supervisor = attached(plan(2, 1));
    supervisor.handle(Event::LinkDead(3));
    let mut said = Vec::new();
    for _ in 0..5 {
        let refused = || Event::Dialed(Err(DialError::Unsteady));
        said.extend([supervisor.handle(unreachable()), supervisor.handle(refused())].into_iter().flatten());
        supervisor.handle(Event::Woke(Timer::Phase(supervisor.phase_number)));
    }
    said.retain(|effect| matches!(effect, Effect::Say(..)));
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn a_read_is_on_its_way_while_there_is_no_connection() {
    // The kernel says first that it is over, or the socket does.
    let mut supervisor = attached(plan(1, 1));
    let lost = deeds(supervisor.handle(Event::LinkDead(3)));
    assert_eq!(lost, [Effect::EndSockets, look_attached(), Effect::Dial(0), WAIT]);
    supervisor.handle(Event::Dialed(Ok(offer(6, 5))));
    supervisor.handle(Event::HandedOver(Ok(())));
    supervisor.handle(Event::SocketEnded(2));
    assert_eq!(deeds(supervisor.handle(Event::LinkDead(3))), [], "it is still on its way");
    supervisor.handle(Event::Dialed(Ok(offer(6, 5))));
    supervisor.handle(Event::HandedOver(Ok(())));
    supervisor.handle(Event::Waited);
    supervisor.handle(Event::SocketEnded(3));
    assert_eq!(deeds(supervisor.handle(Event::LinkDead(3))), [WAIT]);
}

#[test]
fn what_an_operator_can_put_right_is_waited_for() {
    let read_only = Offer { flags: FLAGS | transmission_flag::READ_ONLY, ..offer(6, 5) };
    let nameless = Offer { identity: None, ..offer(6, 5) };
    let poorer = Offer { flags: FLAGS & !transmission_flag::SEND_FLUSH, ..offer(6, 5) };
    let odd = Offer { size: (1 << 20) + 512, ..offer(6, 5) };
    for offered in [read_only, nameless, poorer, odd] {
        let mut supervisor = attached(plan(1, 1));
        supervisor.handle(Event::LinkDead(3));
        let waits = supervisor.handle(Event::Dialed(Ok(offered)));
        assert!(matches!(&waits[..], [Effect::Say(Weight::Warning, _), Effect::Wake(..), Effect::LookAttached { .. }]));
    }
    let mut supervisor = attached(plan(1, 1));
    supervisor.handle(Event::LinkDead(3));
    let refused = Event::Dialed(Err(DialError::Refused(Refusal::Unknown("db".into()))));
    assert_eq!(deeds(supervisor.handle(refused)), [look_attached()]);
}

const FLUSH: Effect = Effect::Flush(3);

/// The timer of the phase that it is in.
fn late(supervisor: &mut Supervisor) -> Vec<Effect> {
    supervisor.handle(Event::Woke(Timer::Phase(supervisor.phase_number)))
}

/// Asks the server, and has it say so.
fn tell(supervisor: &mut Supervisor, told: Result<Offer, DialError>) -> Vec<Effect> {
    let number = supervisor.phase_number;
    assert_eq!(late(supervisor), [Effect::Ask { server: supervisor.server, number }]);
    supervisor.handle(Event::Told(number, told))
}

fn sized(size: u64) -> Offer {
    Offer { size, ..offer(5, 5) }
}

#[test]
fn a_volume_that_grew_grows_the_device() {
    let mut supervisor = attached(plan(1, 1));
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(1 << 20)))), []);
    // Whatever the server has is in the store before the kernel holds requests back for the new size.
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(2 << 20)))), [FLUSH]);
    assert_eq!(
        deeds(tell(&mut supervisor, Ok(sized(2 << 20)))),
        [],
        "a flush that takes its time is not asked for twice"
    );
    assert_eq!(deeds(supervisor.handle(Event::Flushed(Ok(())))), [resize(2 << 20)]);
    assert_eq!(deeds(supervisor.handle(Event::Resized(Ok(())))), []);
    assert_eq!(supervisor.phase, Phase::Attached);
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(2 << 20)))), []);
    // From now on that is what a server must have.
    supervisor.handle(Event::LinkDead(3));
    assert!(deeds(supervisor.handle(Event::Dialed(Ok(offer(6, 5))))).contains(&Effect::Disconnect(3)));
}

#[test]
fn a_volume_that_grew_while_its_server_was_away_grows_the_device_when_it_is_back() {
    let mut supervisor = attached(plan(1, 1));
    supervisor.handle(Event::LinkDead(3));
    supervisor.handle(Event::Dialed(Ok(Offer { size: 2 << 20, ..offer(6, 5) })));
    supervisor.handle(Event::HandedOver(Ok(())));
    assert_eq!(deeds(supervisor.handle(Event::Read(Ok(())))), [resize(1 << 20)], "the one that it had, at first");
    assert_eq!(deeds(supervisor.handle(Event::Resized(Ok(())))), [FLUSH]);
    assert_eq!(deeds(supervisor.handle(Event::Flushed(Ok(())))), [resize(2 << 20)]);
    supervisor.handle(Event::Resized(Ok(())));
    assert_eq!(supervisor.device.as_ref().unwrap().size, 2 << 20);
}

#[test]
fn the_kernel_looks_often_at_requests_while_their_server_is_about_to_leave() {
    let leaving = || Ok(Offer { is_leaving: true, ..sized(1 << 20) });
    let mut supervisor = attached(plan(2, 1));
    assert_eq!(deeds(tell(&mut supervisor, leaving())), [FLUSH], "it may hold requests back for that, too");
    assert_eq!(deeds(supervisor.handle(Event::Flushed(Ok(())))), [Effect::Tick(3, QUICK_TICK), busy(true)]);
    assert_eq!(deeds(tell(&mut supervisor, leaving())), []);
    // It stays after all.
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(1 << 20)))), [FLUSH]);
    assert_eq!(deeds(supervisor.handle(Event::Flushed(Ok(())))), [Effect::Tick(3, TICK), busy(false)]);
    // Or it leaves, and there is another; and what has grown meanwhile grows.
    tell(&mut supervisor, leaving());
    supervisor.handle(Event::Flushed(Ok(())));
    supervisor.handle(Event::LinkDead(3));
    supervisor.handle(Event::Dialed(Ok(Offer { size: 2 << 20, ..offer(6, 5) })));
    supervisor.handle(Event::HandedOver(Ok(())));
    supervisor.handle(Event::Read(Ok(())));
    assert_eq!(deeds(supervisor.handle(Event::Resized(Ok(())))), [FLUSH]);
    assert_eq!(deeds(supervisor.handle(Event::Flushed(Ok(())))), [Effect::Tick(3, TICK), busy(false), resize(2 << 20)]);
    // With a time limit it is that which counts.
    let mut supervisor = attached(Plan { timeout: Duration::from_secs(30), ..plan(1, 1) });
    assert_eq!(deeds(tell(&mut supervisor, leaving())), []);
}

#[test]
fn a_size_that_does_not_fit_or_is_anothers_or_is_not_taken_changes_nothing() {
    let other = Offer { identity: Some(Identity { volume: Uuid::from_u128(9), ..identity(5, 5) }), ..sized(2 << 20) };
    for told in [sized((2 << 20) + 512), sized(1 << 19), other, Offer { identity: None, ..sized(2 << 20) }] {
        let mut supervisor = attached(plan(1, 1));
        assert_eq!(deeds(tell(&mut supervisor, Ok(told))), []);
        assert_eq!(supervisor.phase, Phase::Attached);
    }
    let mut supervisor = attached(plan(1, 1));
    assert_eq!(deeds(tell(&mut supervisor, Err(DialError::Unsteady))), [], "it need not let anybody else in");
    tell(&mut supervisor, Ok(sized(2 << 20)));
    assert_eq!(deeds(supervisor.handle(Event::Flushed(Err("EIO".into())))), []);
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(2 << 20)))), [FLUSH], "later it is tried again");
    supervisor.handle(Event::Flushed(Ok(())));
    let refused = Event::Resized(Err(KernelError::Other(io::ErrorKind::Other.into())));
    assert_eq!(deeds(supervisor.handle(refused)), [], "and not at once");
    assert_eq!(supervisor.device.as_ref().unwrap().size, 1 << 20);
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(2 << 20)))), [FLUSH]);
    // A flush that comes back in another outage says nothing of this one.
    supervisor.handle(Event::LinkDead(3));
    assert_eq!(supervisor.handle(Event::Flushed(Ok(()))), []);
}

#[test]
fn a_kernel_that_never_takes_the_size_keeps_nobody_from_connecting_again() {
    let sizing = || {
        let mut supervisor = draining(1);
        supervisor.handle(Event::LinkDead(3));
        supervisor.handle(Event::HandedOver(Ok(())));
        let sizing = supervisor.handle(Event::Read(Ok(())));
        assert!(sizing.contains(&Effect::Wake(Timer::Phase(supervisor.phase_number), KERNEL)), "{sizing:?}");
        supervisor
    };
    // The connection ends in it.
    let mut supervisor = sizing();
    supervisor.handle(Event::SocketEnded(2));
    assert_eq!(deeds(late(&mut supervisor)), [Effect::EndSockets, look_attached(), Effect::Dial(0)]);
    // It goes on, and tells no second size until the first is taken.
    let mut supervisor = sizing();
    assert_eq!(deeds(late(&mut supervisor)), []);
    assert_eq!(supervisor.phase, Phase::Attached);
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(2 << 20)))), []);
    supervisor.handle(Event::Resized(Ok(())));
    assert_eq!(deeds(tell(&mut supervisor, Ok(sized(2 << 20)))), [FLUSH]);
}

#[test]
fn a_kernel_that_never_takes_the_sockets_ends_with_the_time_of_the_outage() {
    let mut supervisor = draining(1);
    let handing = supervisor.handle(Event::LinkDead(3));
    assert!(handing.contains(&Effect::Wake(Timer::Phase(supervisor.phase_number), KERNEL)), "{handing:?}");
    assert!(matches!(&late(&mut supervisor)[..], [Effect::Say(Weight::Warning, _)]));
    assert_eq!(supervisor.phase, Phase::HandingOver);
    let given_up = deeds(supervisor.handle(Event::Woke(Timer::Outage(1))));
    assert_eq!(given_up, [Effect::EndSockets, Effect::Disconnect(3)]);
}

#[test]
fn a_kernel_that_never_makes_the_device_is_not_waited_for() {
    let (mut supervisor, _) = Supervisor::new(plan(1, 1));
    let connecting = supervisor.handle(Event::Dialed(Ok(offer(5, 5))));
    assert!(connecting.contains(&Effect::Wake(Timer::Phase(supervisor.phase_number), KERNEL)), "{connecting:?}");
    assert!(ended(&late(&mut supervisor)).unwrap().is_err());
}

/// Its sockets stay open, and nothing ends by itself.
#[test]
fn a_server_that_hangs_is_left_for_the_next_and_the_device_stays() {
    let mut supervisor = attached(plan(2, 1));
    let doubting = tell(&mut supervisor, Err(DialError::Silent));
    assert_eq!(deeds(doubting.clone()), [READ]);
    assert!(doubting.contains(&Effect::Wake(Timer::Phase(supervisor.phase_number), DOUBT)));
    let lost = late(&mut supervisor);
    assert!(lost.contains(&Effect::Wake(Timer::Outage(1), Duration::from_secs(600))), "{lost:?}");
    assert_eq!(deeds(lost), [Effect::EndSockets, look_attached(), Effect::Dial(1)]);
    supervisor.handle(Event::LinkDead(3));
    // Nobody else has the volume: it is waited for, and the first comes to its senses.
    let silent = || Event::Dialed(Err(DialError::Silent));
    assert_eq!(deeds(supervisor.handle(silent())), [Effect::Dial(0)]);
    assert_eq!(deeds(supervisor.handle(silent())), [look_attached()]);
    assert_eq!(late(&mut supervisor), [Effect::Dial(1)]);
    supervisor.handle(unreachable());
    assert_eq!(deeds(supervisor.handle(Event::Dialed(Ok(offer(5, 5))))), [hand_over()]);
    // The read of before comes back now.
    supervisor.handle(Event::Read(Ok(())));
    assert_eq!(deeds(supervisor.handle(Event::HandedOver(Ok(())))), [READ]);
    assert_eq!(deeds(supervisor.handle(Event::Read(Ok(())))), [resize(1 << 20)]);
}

#[test]
fn a_server_that_greets_nobody_and_still_serves_is_left_alone() {
    let mut supervisor = attached(plan(2, 1));
    tell(&mut supervisor, Err(DialError::Silent));
    let answered = supervisor.handle(Event::Read(Err("a damaged block is an answer".into())));
    assert_eq!(answered, [Effect::Wake(Timer::Phase(supervisor.phase_number), ASK)]);
    assert_eq!(supervisor.phase, Phase::Attached);
    // What was said before a reconnection is not about the server of now.
    let number = supervisor.phase_number;
    late(&mut supervisor);
    supervisor.handle(Event::LinkDead(3));
    assert_eq!(supervisor.handle(Event::Told(number, Err(DialError::Silent))), []);
    // And a connection that ends meanwhile ends the doubt.
    let mut supervisor = attached(plan(1, 1));
    tell(&mut supervisor, Err(DialError::Silent));
    assert!(deeds(supervisor.handle(Event::SocketEnded(1))).contains(&Effect::Dial(0)));
}

#[test]
fn without_a_server_for_too_long_the_device_is_given_up() {
    let mut supervisor = attached(plan(1, 1));
    let lost = supervisor.handle(Event::LinkDead(3));
    assert!(lost.contains(&Effect::Wake(Timer::Outage(1), Duration::from_secs(600))));
    supervisor.handle(unreachable());
    assert_eq!(supervisor.handle(Event::Woke(Timer::Outage(0))), []);
    let late = deeds(supervisor.handle(Event::Woke(Timer::Outage(1))));
    assert_eq!(late, [Effect::EndSockets, Effect::Disconnect(3)]);
    assert!(ended(&supervisor.handle(Event::Disconnected(Ok(())))).unwrap().is_err());
}

#[test]
fn the_timer_of_an_outage_that_is_over_does_nothing() {
    let mut supervisor = draining(1);
    supervisor.handle(Event::LinkDead(3));
    supervisor.handle(Event::HandedOver(Ok(())));
    supervisor.handle(Event::Read(Ok(())));
    supervisor.handle(Event::Resized(Ok(())));
    assert_eq!(supervisor.handle(Event::Woke(Timer::Outage(1))), []);
    supervisor.handle(Event::LinkDead(3));
    assert_eq!(supervisor.handle(Event::Woke(Timer::Outage(1))), []);
}

#[test]
fn a_connection_that_ends_while_the_size_is_told_begins_an_outage_of_its_own() {
    let mut supervisor = draining(1);
    supervisor.handle(Event::LinkDead(3));
    supervisor.handle(Event::HandedOver(Ok(())));
    supervisor.handle(Event::Read(Ok(())));
    supervisor.handle(Event::LinkDead(3));
    assert_eq!(supervisor.handle(Event::Woke(Timer::Outage(1))), [], "the device was there");
    let lost = supervisor.handle(Event::Resized(Ok(())));
    assert!(lost.contains(&Effect::Wake(Timer::Outage(2), Duration::from_secs(600))), "{lost:?}");
}

#[test]
fn a_device_in_use_is_left_only_when_it_is_not_or_by_force() {
    let mut supervisor = attached(plan(1, 1));
    assert_eq!(deeds(supervisor.handle(Event::Stop)), [Effect::LookInUse(3)]);
    let waits = supervisor.handle(Event::InUse(true));
    assert!(matches!(&waits[..], [Effect::Say(Weight::Warning, _), Effect::Wake(Timer::Look, LOOK)]));
    assert_eq!(supervisor.handle(Event::Woke(Timer::Look)), [Effect::LookInUse(3)]);
    let mut forced = attached(plan(1, 1));
    forced.handle(Event::Stop);
    assert_eq!(deeds(forced.handle(Event::Force)), [Effect::EndSockets, Effect::Disconnect(3)]);
    assert_eq!(ended(&forced.handle(Event::Disconnected(Ok(())))), Some(&Ok(())));
    // In good order the kernel takes leave of the server, so its sockets are left alone at first.
    assert_eq!(deeds(supervisor.handle(Event::InUse(false))), [Effect::Disconnect(3)]);
    let late = supervisor.handle(Event::Woke(Timer::Phase(supervisor.phase_number)));
    assert_eq!(deeds(late), [Effect::EndSockets]);
    assert_eq!(
        ended(&supervisor.handle(Event::Woke(Timer::Phase(supervisor.phase_number)))).map(Result::is_err),
        Some(true)
    );
}

#[test]
fn whoever_ends_the_device_by_other_means_ends_its_supervisor() {
    let mut supervisor = attached(plan(1, 1));
    supervisor.handle(Event::SocketEnded(1));
    let end = supervisor.handle(Event::StillAttached(Err(KernelError::NotAttached(3))));
    assert_eq!(ended(&end), Some(&Ok(())));
}

#[test]
fn a_first_attach_that_fails_says_so_and_leaves_nothing_behind() {
    let (mut supervisor, _) = Supervisor::new(plan(2, 1));
    assert_eq!(deeds(supervisor.handle(unreachable())), [Effect::Dial(1)]);
    assert!(ended(&supervisor.handle(unreachable())).unwrap().is_err());
    let (mut supervisor, _) = Supervisor::new(plan(1, 1));
    supervisor.handle(Event::Dialed(Ok(offer(5, 5))));
    assert!(ended(&supervisor.handle(Event::Connected(Err(KernelError::Busy(3))))).unwrap().is_err());
    for fails in [Event::Read(Err("EIO".into())), Event::SocketEnded(1), Event::Woke(Timer::Phase(3))] {
        let (mut supervisor, _) = Supervisor::new(plan(1, 1));
        supervisor.handle(Event::Dialed(Ok(offer(5, 5))));
        supervisor.handle(Event::Connected(Ok(3)));
        assert_eq!(supervisor.phase_number, 3);
        let failed = deeds(supervisor.handle(fails));
        assert_eq!(failed, [Effect::EndSockets, Effect::Disconnect(3)]);
    }
}

#[test]
fn what_the_kernel_or_the_server_cannot_do_is_refused_before_there_is_a_device() {
    let refused = |plan: Plan, offered: Offer| {
        let (mut supervisor, _) = Supervisor::new(plan);
        let end = supervisor.handle(Event::Dialed(Ok(offered)));
        ended(&end).and_then(|outcome| outcome.clone().err()).unwrap()
    };
    let small = Plan { sector_size: Some(512), ..plan(1, 1) };
    assert!(refused(small, Offer { minimum_block: 4096, ..offer(1, 1) }).contains("--sector-size 512"));
    assert!(refused(plan(1, 1), Offer { size: 4096 + 512, ..offer(1, 1) }).contains("no multiple of 4096"));
    let single = Offer { flags: transmission_flag::HAS_FLAGS, ..offer(1, 1) };
    assert!(refused(plan(1, 2), single).contains("--connections"));
    assert!(refused(plan(1, 1), Offer { identity: None, ..offer(1, 1) }).contains("which volume"));
}

/// What answers an effect, if it is one that is answered. `luck` decides how.
fn answer(effect: &Effect, luck: u8) -> Option<Event> {
    let kernel =
        |luck: u8| if luck.is_multiple_of(8) { Err(KernelError::Other(io::ErrorKind::Other.into())) } else { Ok(()) };
    Some(match effect {
        Effect::Dial(_) if luck.is_multiple_of(4) => unreachable(),
        Effect::Dial(_) => Event::Dialed(Ok(offer(6, 5))),
        Effect::Connect(_) => Event::Connected(kernel(luck).map(|()| 3)),
        Effect::HandOver { .. } => Event::HandedOver(kernel(luck)),
        Effect::Resize { .. } => Event::Resized(kernel(luck)),
        Effect::LookAttached { .. } => Event::StillAttached(kernel(luck)),
        Effect::Read { .. } => Event::Read(if luck.is_multiple_of(8) { Err("EIO".into()) } else { Ok(()) }),
        Effect::WaitInKernel { .. } => Event::Waited,
        Effect::Flush(_) => Event::Flushed(if luck.is_multiple_of(8) { Err("EIO".into()) } else { Ok(()) }),
        Effect::Ask { number, .. } if luck.is_multiple_of(8) => Event::Told(*number, Err(DialError::Silent)),
        Effect::Ask { number, .. } => Event::Told(*number, Ok(sized(u64::from(luck % 4) << 20))),
        Effect::LookInUse(_) => Event::InUse(luck.is_multiple_of(2)),
        Effect::Disconnect(_) => Event::Disconnected(kernel(luck)),
        Effect::Wake(timer, _) => Event::Woke(*timer),
        Effect::EndSockets | Effect::Tick(..) | Effect::KeepBusy { .. } => return None,
        Effect::Say(..) | Effect::Ready(_) | Effect::End(_) => return None,
    })
}

proptest! {
    /// Whatever happens in whatever order: there is always something to wait for, the kernel is given sockets once at a time, it is
    /// asked for no size while it has none, and the end comes once, with nothing after it.
    #[test]
    fn nothing_hangs_and_nothing_is_done_twice(
        steps in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..120),
        connections in 1_usize..3,
        force_at in 0_usize..120,
    ) {
        let (mut supervisor, effects) = Supervisor::new(plan(2, connections));
        let mut pending = effects;
        let (mut ready, mut over) = (0, 0);
        for (step, (which, luck)) in steps.into_iter().enumerate() {
            pending.retain(|effect| answer(effect, 1).is_some());
            let event = match (which % 8, pending.len()) {
                _ if step == force_at => Event::Force,
                (0, _) => Event::LinkDead(3),
                (1, _) => Event::SocketEnded(supervisor.generation()),
                (2, _) if luck == 0 => Event::Stop,
                (_, 0) => Event::LinkDead(3),
                (_, len) => {
                    let effect = pending.swap_remove(usize::from(which) % len);
                    match answer(&effect, luck) {
                        Some(event) => event,
                        None => continue,
                    }
                }
            };
            let more = supervisor.handle(event);
            ready += more.iter().filter(|effect| matches!(effect, Effect::Ready(_))).count();
            over += more.iter().filter(|effect| matches!(effect, Effect::End(_))).count();
            prop_assert!(over == 0 || supervisor.phase == Phase::Ended);
            if supervisor.phase == Phase::Ended {
                break;
            }
            pending.extend(more);
            let gives = pending.iter().filter(|effect| matches!(effect, Effect::Connect(_) | Effect::HandOver { .. }));
            prop_assert!(gives.count() <= 1);
            let sizes = pending.iter().filter(|effect| matches!(effect, Effect::Resize { .. }));
            prop_assert!(sizes.count() <= 1);
            let reads = pending.iter().filter(|effect| matches!(effect, Effect::Read { .. }));
            prop_assert!(reads.count() <= 1);
            let waits = pending.iter().filter(|effect| matches!(effect, Effect::WaitInKernel { .. }));
            prop_assert!(waits.count() <= 1);
            if supervisor.phase != Phase::Ended {
                let ends = |effect: &&Effect| !matches!(effect, Effect::WaitInKernel { .. }) && answer(effect, 1).is_some();
                prop_assert!(pending.iter().any(|effect| ends(&effect)), "{:?} waits for nothing", supervisor.phase);
            }
        }
        prop_assert!(ready <= 1 && over <= 1);
        // And by force it always ends.
        pending.extend(supervisor.handle(Event::Force));
        for _ in 0..20 {
            if supervisor.phase == Phase::Ended {
                break;
            }
            let answers: Vec<Event> = pending.drain(..).filter_map(|effect| answer(&effect, 1)).collect();
            pending.extend(answers.into_iter().flat_map(|event| supervisor.handle(event)));
        }
        prop_assert!(supervisor.phase == Phase::Ended);
    }
}
