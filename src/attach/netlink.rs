//! The messages of the kernel's generic netlink family "nbd" (`include/uapi/linux/nbd-netlink.h`), and a socket to exchange them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, Nla, NlaBuffer, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::{GenlCtrlAttrs, McastGrpAttrs};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

use super::kernel::Setup;

/// Commands.
pub mod command {
    /// Make a device of sockets.
    pub const CONNECT: u8 = 1;
    /// End its connections.
    pub const DISCONNECT: u8 = 2;
    /// Change it: new sockets for dead ones, another size.
    pub const RECONFIGURE: u8 = 3;
    /// Said to everybody who listens: a connection is dead.
    pub const LINK_DEAD: u8 = 4;
    /// List the devices.
    pub const STATUS: u8 = 5;
}

/// Attributes of a message.
mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const DEVICE_LIST: u16 = 9;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// Inside SOCKETS, and the file descriptor inside that.
    pub const SOCK_ITEM: u16 = 1;
    pub const SOCK_FD: u16 = 1;
    /// Inside DEVICE_LIST.
    pub const DEVICE_NUMBER: u16 = 1;
    pub const DEVICE_CONNECTED: u16 = 2;
}

/// One message of the family, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// See [`command`].
    pub command: u8,
    attributes: Vec<DefaultNla>,
}

/// A device as STATUS tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its number.
    pub device: u32,
    /// Whether it is attached.
    pub connected: bool,
}

impl Message {
    fn new(command: u8) -> Message {
        Message { command, attributes: Vec::new() }
    }

    fn with(mut self, kind: u16, value: impl Into<Vec<u8>>) -> Message {
        self.attributes.push(DefaultNla::new(kind, value.into()));
        self
    }

    fn with_number(self, kind: u16, number: u64) -> Message {
        self.with(kind, number.to_ne_bytes())
    }

    fn with_device(self, device: u32) -> Message {
        self.with(attribute::INDEX, device.to_ne_bytes())
    }

    fn with_backend(self, backend: &str) -> Message {
        self.with(attribute::BACKEND_IDENTIFIER, [backend.as_bytes(), &[0]].concat())
    }

    fn with_sockets(self, sockets: &[Arc<OwnedFd>]) -> Message {
        let item = |socket: &Arc<OwnedFd>| {
            // A descriptor is not negative.
            let number = socket.as_raw_fd() as u32;
            nested(attribute::SOCK_ITEM, &[DefaultNla::new(attribute::SOCK_FD, number.to_ne_bytes().into())])
        };
        let items: Vec<DefaultNla> = sockets.iter().map(item).collect();
        let mut message = self;
        message.attributes.push(nested(attribute::SOCKETS, &items));
        message
    }

    /// Make a device.
    pub fn connect(setup: &Setup, sockets: &[Arc<OwnedFd>]) -> Message {
        let message = Message::new(command::CONNECT);
        let message = match setup.device {
            Some(device) => message.with_device(device),
            None => message,
        };
        message
            .with_number(attribute::SIZE_BYTES, setup.size)
            .with_number(attribute::BLOCK_SIZE_BYTES, u64::from(setup.sector_size))
            .with_number(attribute::TIMEOUT, setup.timeout.as_secs())
            .with_number(attribute::DEAD_CONN_TIMEOUT, setup.dead_timeout.as_secs())
            .with_number(attribute::SERVER_FLAGS, u64::from(setup.flags))
            .with_backend(&setup.backend)
            .with_sockets(sockets)
    }

    /// New sockets. Nothing else, or else the kernel might wait for requests that wait for the sockets.
    pub fn hand_over(device: u32, backend: &str, sockets: &[Arc<OwnedFd>]) -> Message {
        Message::new(command::RECONFIGURE).with_device(device).with_backend(backend).with_sockets(sockets)
    }

    /// Another size, or the same once more.
    pub fn resize(device: u32, backend: &str, size: u64, sector_size: u32) -> Message {
        Message::new(command::RECONFIGURE)
            .with_device(device)
            .with_backend(backend)
            .with_number(attribute::SIZE_BYTES, size)
            .with_number(attribute::BLOCK_SIZE_BYTES, u64::from(sector_size))
    }

    /// The end.
    pub fn disconnect(device: u32) -> Message {
        Message::new(command::DISCONNECT).with_device(device)
    }

    /// The state of all devices.
    pub fn status() -> Message {
        Message::new(command::STATUS)
    }

    /// The number of the device that it is about.
    pub fn device(&self) -> Option<u32> {
        let index = self.attributes.iter().find(|nla| nla.kind() == attribute::INDEX)?;
        number(index)
    }

    /// The devices of an answer to STATUS.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let lists = self.attributes.iter().filter(|nla| plain_kind(nla) == attribute::DEVICE_LIST);
        let items = lists.flat_map(|list| parse_all(&value(list)).unwrap_or_default());
        items.filter_map(|item| device_status(&parse_all(&value(&item)).ok()?)).collect()
    }
}

fn device_status(fields: &[DefaultNla]) -> Option<DeviceStatus> {
    let field = |kind| fields.iter().find(|nla| plain_kind(nla) == kind);
    let connected = value(field(attribute::DEVICE_CONNECTED)?).first().is_some_and(|byte| *byte != 0);
    Some(DeviceStatus { device: number(field(attribute::DEVICE_NUMBER)?)?, connected })
}

fn nested(kind: u16, inside: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inside.buffer_len()];
    inside.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn plain_kind(nla: &DefaultNla) -> u16 {
    nla.kind() & !NLA_F_NESTED
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes
}

fn number(nla: &DefaultNla) -> Option<u32> {
    Some(u32::from_ne_bytes(value(nla).try_into().ok()?))
}

fn parse_all(bytes: &[u8]) -> Result<Vec<DefaultNla>, DecodeError> {
    NlasIterator::new(bytes).map(|nla| nla.and_then(|nla: NlaBuffer<&[u8]>| DefaultNla::parse(&nla))).collect()
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        "nbd"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Message { command: header.cmd, attributes: parse_all(bytes)? })
    }
}

/// The group that hears of dead connections.
const GROUP: &str = "nbd_mc_group";

/// A socket that speaks to the family. Its calls block.
pub struct Line {
    socket: Socket,
    family: u16,
    group: Option<u32>,
    sequence: u32,
}

impl Line {
    /// A socket, and the family's number. The error is `NotFound` if the kernel has no such family.
    pub fn open() -> io::Result<Line> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut line = Line { socket, family: 0, group: None, sequence: 0 };
        let ask = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(Message::family_name().to_owned())],
        };
        for answer in line.exchange(GenlMessage::from_payload(ask))? {
            for nla in answer.payload.nlas {
                match nla {
                    GenlCtrlAttrs::FamilyId(family) => line.family = family,
                    GenlCtrlAttrs::McastGroups(groups) => {
                        line.group = groups.iter().find_map(|group| group_number(group))
                    }
                    _ => {}
                }
            }
        }
        match line.family {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(line),
        }
    }

    /// Asks the kernel to do something, and returns its answers once it is done.
    pub fn ask(&mut self, message: Message) -> io::Result<Vec<Message>> {
        let mut message = GenlMessage::from_payload(message);
        message.set_resolved_family_id(self.family);
        Ok(self.exchange(message)?.into_iter().map(|answer| answer.payload).collect())
    }

    /// Has the socket hear of dead connections; after that it is for [`Line::hear`] only.
    pub fn listen(&self) -> io::Result<()> {
        let group = self.group.ok_or_else(|| io::Error::other("the kernel's NBD client has no group of listeners"))?;
        self.socket.add_membership(group)
    }

    /// Waits for the next message that the kernel sends by itself.
    pub fn hear(&self) -> io::Result<Message> {
        loop {
            let heard = self.receive::<Message>()?.into_iter().find_map(|(_, payload)| match payload {
                NetlinkPayload::InnerMessage(message) => Some(message.payload),
                _ => None,
            });
            if let Some(message) = heard {
                return Ok(message);
            }
        }
    }

    fn exchange<F>(&mut self, message: GenlMessage<F>) -> io::Result<Vec<GenlMessage<F>>>
    where
        F: GenlFamily + Emitable + std::fmt::Debug + ParseableParametrized<[u8], GenlHeader>,
        GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            for (sequence, payload) in self.receive::<F>()? {
                match payload {
                    _ if sequence != self.sequence => {}
                    // Also the acknowledgement, which has no error in it.
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
            }
        }
    }

    fn receive<F>(&self) -> io::Result<Vec<Numbered<F>>>
    where
        F: std::fmt::Debug + ParseableParametrized<[u8], GenlHeader>,
    {
        let (bytes, _) = loop {
            match self.socket.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        decode(&bytes).map_err(|error| io::Error::other(format!("the kernel's answer makes no sense: {error}")))
    }
}

/// A message of the kernel, and the number of what it answers.
type Numbered<F> = (u32, NetlinkPayload<GenlMessage<F>>);

/// All messages of one datagram.
fn decode<F>(mut bytes: &[u8]) -> Result<Vec<Numbered<F>>, DecodeError>
where
    F: std::fmt::Debug + ParseableParametrized<[u8], GenlHeader>,
{
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let message = NetlinkMessage::<GenlMessage<F>>::deserialize(bytes)?;
        let len = (message.header.length as usize).next_multiple_of(4);
        messages.push((message.header.sequence_number, message.payload));
        // Never endless: what is decoded has at least a header.
        bytes = bytes.get(len.max(1)..).unwrap_or_default();
    }
    Ok(messages)
}

fn group_number(group: &[McastGrpAttrs]) -> Option<u32> {
    let is_ours = group.iter().any(|nla| matches!(nla, McastGrpAttrs::Name(name) if name == GROUP));
    let number = group.iter().find_map(|nla| if let McastGrpAttrs::Id(id) = nla { Some(*id) } else { None });
    number.filter(|_| is_ours)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn emitted(message: &Message) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    /// An attribute as the kernel reads it: length, kind, value, and what fills it up to four bytes.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [(value.len() as u16 + 4).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_what_nbd_netlink_h_says() {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let fd = socket.as_raw_fd() as u32;
        let sockets = [Arc::new(socket)];
        let nested = |kind: u16| kind | 0x8000;
        let item = attribute(nested(1), &attribute(1, &fd.to_ne_bytes()));
        let sent = [attribute(1, &3_u32.to_ne_bytes()), attribute(10, b"ashlar:db:u\0"), attribute(nested(7), &item)];
        assert_eq!(emitted(&Message::hand_over(3, "ashlar:db:u", &sockets)), sent.concat());
        let setup = Setup {
            device: None,
            size: 1 << 40,
            sector_size: 4096,
            flags: 0x16d,
            timeout: Duration::from_secs(9),
            dead_timeout: Duration::from_secs(600),
            backend: "b".into(),
        };
        let number = |kind, number: u64| attribute(kind, &number.to_ne_bytes());
        let sent = [
            number(2, 1 << 40),
            number(3, 4096),
            number(4, 9),
            number(8, 600),
            number(5, 0x16d),
            attribute(10, b"b\0"),
            attribute(nested(7), &item),
        ];
        assert_eq!(emitted(&Message::connect(&setup, &sockets)), sent.concat());
    }

    #[test]
    fn the_devices_are_read_from_an_answer_to_status() {
        let device = |number: u32, connected: u8| {
            attribute(1 | 0x8000, &[attribute(1, &number.to_ne_bytes()), attribute(2, &[connected])].concat())
        };
        let bytes = attribute(9 | 0x8000, &[device(0, 1), device(7, 0)].concat());
        let message = Message { command: command::STATUS, attributes: parse_all(&bytes).unwrap() };
        let status = |device, connected| DeviceStatus { device, connected };
        assert_eq!(message.devices(), [status(0, true), status(7, false)]);
        assert_eq!(message.device(), None);
    }
}
