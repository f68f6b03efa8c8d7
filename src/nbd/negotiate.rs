//! The handshake without I/O: bytes in, bytes and actions out (proto.md, "Newstyle negotiation", "Fixed newstyle
//! negotiation", "Option types").
//!
//! The caller hands in what arrives with [`Negotiation::receive`], asks [`Negotiation::step`] what to do next, sends
//! what [`Negotiation::take_output`] has, and answers the two questions that only the exports can answer:
//!
//! ```text
//!            flags           option header        whole data            answer
//! Flags ──────────────> Header ─────────────> Data ───────────> Asked ──────────> Header, or Ended(Enter)
//!   │ unknown bit         │ bad magic          │ INFO, GO, LIST, EXPORT_NAME, LIST and SET_META_CONTEXT
//!   v                     v                    v anything else: reply
//! Ended(Close)          Ended(Close)         Header, or Ended(Finish) after ABORT
//!                         │ too long, or not known
//!                         v
//!                        Skip ──(data thrown away)──> reply, Header
//! ```
//!
//! What one client can make it hold is bounded by [`Limits`]: at most one option of `max_option_bytes` and what the
//! caller reads ahead. Bytes after the option that begins transmission stay untouched ([`Negotiation::into_rest`]).
//! What a client agrees on before it enters is in [`Agreed`]. Metadata contexts belong to one export by its name, as it was
//! written: those that were selected for another are void, and so is every selection when the next is tried (rule O27).
//!
//! STARTTLS ends in [`Step::StartTls`]: the caller lets TLS begin on the same connection and goes on with
//! [`Negotiation::over_tls`], which has forgotten all that was agreed in plain text (rule O11). What a client sent in plain
//! text behind STARTTLS might have come from somebody on the way, to be taken for its own later: it ends the connection.

use bytes::{Buf, BufMut, BytesMut};

use super::options::Options;
use super::wire::{
    self, EXPORT_NAME_PAD, OptionHeader, STRING_BYTES_MAX, Style, Succession, allocation, changed, client_flag,
    fit_string, info, is_string, option, reply_type, transmission_flag,
};
use crate::device::{DeviceInfo, ExportEntry, ExportError, Version};

/// Bytes that are best read at a time: room for so many is there beside an option.
pub const READ_BYTES: usize = 8 << 10;

/// What to do next. Send the output first, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read more from the client.
    Read,
    /// Ask for the list of exports, then call [`Negotiation::listed`].
    List,
    /// Open the export of that name, then call [`Negotiation::opened`]. Transmission begins then, unless the client only
    /// wants to know.
    Open {
        /// The export's name.
        name: String,
        /// Whether the client only wants to know (NBD_OPT_INFO).
        only_info: bool,
    },
    /// Ask whether there is an export of that name, and which of its versions are wanted, then call [`Negotiation::looked`].
    Look {
        /// The export's name.
        name: String,
        /// The contexts that the client asks about.
        contexts: Contexts,
    },
    /// End the connections whose place this one takes, wait until nothing of them is left, then call
    /// [`Negotiation::succeeded`].
    Succeed(Succession),
    /// The handshake is over: transmission begins, on the export that was opened last, as [`Negotiation::agreed`] says.
    Enter,
    /// Begin TLS, then go on with [`Negotiation::over_tls`].
    StartTls,
    /// The client said goodbye: wait until it closes.
    Finish,
    /// Close the connection, for this reason.
    Close(CloseReason),
}

/// Why a handshake is ended by the server (rule C5: only for these).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The client set a flag that was not offered.
    #[error("the client flags {0:#010x} have bits that were not offered")]
    UnknownFlags(u32),
    /// An option does not begin as an option must.
    #[error("an option does not begin with IHAVEOPT")]
    BadMagic,
    /// EXPORT_NAME has no way to say no but this.
    #[error("EXPORT_NAME asked for an export that cannot be served")]
    NoSuchExport,
    /// Extended headers were agreed, with which GO is the only way in.
    #[error("EXPORT_NAME came after extended headers were agreed, which exclude it")]
    OnlyGo,
    /// Plain text where TLS must begin.
    #[error("the client sent more in plain text behind STARTTLS")]
    PlainBehindStartTls,
    /// More options than the limit.
    #[error("the client sent more than max_options options")]
    TooManyOptions,
    /// More bytes than the limit.
    #[error("the client sent more than max_handshake_bytes bytes")]
    TooManyBytes,
}

/// What a client may ask of a handshake; see [`Options`] for the meaning of each.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    max_options: u32,
    max_option_bytes: u32,
    max_handshake_bytes: u64,
    max_payload: u32,
    minimum_block_size: u32,
    list_exports: bool,
}

impl From<&Options> for Limits {
    fn from(options: &Options) -> Limits {
        Limits {
            max_options: options.max_options,
            max_option_bytes: options.max_option_bytes,
            max_handshake_bytes: options.max_handshake_bytes,
            max_payload: options.max_payload,
            minimum_block_size: options.minimum_block_size,
            list_exports: options.list_exports,
        }
    }
}

/// What a client agreed on with the server, beside the export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// How requests and replies are laid out.
    pub style: Style,
    /// Whether `base:allocation` was selected for the export.
    pub allocation: bool,
    /// The versions of the export for which `ashlar:changed` was selected; [`CHANGED_MAX`] at most.
    pub changed: Vec<Version>,
}

/// So many contexts of `ashlar:changed` a client may select.
pub const CHANGED_MAX: usize = 4;

/// So many it may ask for, whether they are there or not.
const CHANGED_ASKED_MAX: usize = 64;

/// Contexts that LIST or SET_META_CONTEXT asks about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// `base:allocation`.
    pub allocation: bool,
    /// `ashlar:changed` of each version that there is.
    pub all_changed: bool,
    /// And of these, by name.
    pub changed: Vec<String>,
}

impl Contexts {
    /// Whether the answer depends on the versions that there are.
    pub fn wants_versions(&self) -> bool {
        self.all_changed || !self.changed.is_empty()
    }

    /// Whether it asks about that version.
    pub fn wants(&self, version: &Version) -> bool {
        self.all_changed || self.changed.contains(&version.name)
    }

    fn add(&mut self, query: &str, is_list: bool) -> Result<(), BadContexts> {
        self.allocation |= query == allocation::NAME || is_list && query == "base:";
        self.all_changed |= is_list && (query == "ashlar:" || query == changed::PREFIX);
        let name = query.strip_prefix(changed::PREFIX).filter(|name| !name.is_empty());
        if let Some(name) = name.filter(|name| !self.changed.iter().any(|known| known == name)) {
            if self.changed.len() == CHANGED_ASKED_MAX {
                return Err(BadContexts::TooMany);
            }
            self.changed.push(name.to_owned());
        }
        Ok(())
    }
}

/// What is selected, and of which export.
#[derive(Debug)]
struct Selected {
    export: String,
    allocation: bool,
    changed: Vec<Version>,
}

/// What TLS is to a connection (rule T1: the same for its life, but that it may begin to run).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// There is none (NOTLS).
    #[default]
    Off,
    /// A client may begin it, and must for some exports (SELECTIVETLS).
    Offered,
    /// A client must begin it (FORCEDTLS).
    Required,
    /// It runs.
    Running,
}

/// One client's handshake.
#[derive(Debug)]
pub struct Negotiation {
    limits: Limits,
    tls: Tls,
    state: State,
    style: Style,
    /// What is selected, and for which export.
    selected: Option<Selected>,
    /// What holds for the export that was opened last.
    agreed: Agreed,
    input: BytesMut,
    output: BytesMut,
    pad_export_name: bool,
    shutting_down: bool,
    options_seen: u32,
    bytes_seen: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Flags,
    Header,
    Data(OptionHeader),
    Skip { option: u32, left: u32, reply: (u32, &'static str) },
    Asked(Question),
    Ended(Step),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    List,
    Open { option: u32, name: String, wanted: Wanted },
    Look { option: u32, name: String, contexts: Contexts },
    Succeed(Succession),
}

/// Information that INFO or GO asked for, beyond what is always sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    name: bool,
    description: bool,
}

impl Negotiation {
    /// Begins a handshake; the greeting is the first output.
    pub fn new(limits: Limits) -> Negotiation {
        let mut output = BytesMut::new();
        wire::put_greeting(&mut output);
        Negotiation {
            limits,
            tls: Tls::Off,
            state: State::Flags,
            style: Style::Simple,
            selected: None,
            agreed: Agreed::default(),
            input: BytesMut::new(),
            output,
            pad_export_name: true,
            shutting_down: false,
            options_seen: 0,
            bytes_seen: 0,
        }
    }

    /// The same, on a connection to which TLS is this.
    pub fn with_tls(self, tls: Tls) -> Negotiation {
        Negotiation { tls, ..self }
    }

    /// The handshake as it goes on over TLS, after [`Step::StartTls`]. Of what was said before only the client's flags, which it
    /// does not say again, and the counts that bound it are kept (rule O11).
    pub fn over_tls(self) -> Negotiation {
        let Negotiation { limits, pad_export_name, shutting_down, options_seen, bytes_seen, .. } = self;
        Negotiation {
            tls: Tls::Running,
            state: State::Header,
            output: BytesMut::new(),
            pad_export_name,
            shutting_down,
            options_seen,
            bytes_seen,
            ..Negotiation::new(limits)
        }
    }

    /// Takes what the client sent.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.bytes_seen += bytes.len() as u64;
        self.input.extend_from_slice(bytes);
    }

    /// What is to be sent before the next step is taken.
    pub fn take_output(&mut self) -> BytesMut {
        self.output.split()
    }

    /// From now on every option but ABORT is answered with ERR_SHUTDOWN (rule H11).
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// What was agreed on when the export was opened that the client enters.
    pub fn agreed(&self) -> Agreed {
        self.agreed.clone()
    }

    /// What the client sent after the option that began transmission: it belongs to the transmission phase.
    pub fn into_rest(self) -> BytesMut {
        self.input
    }

    /// Goes on as far as the bytes allow and says what to do next. Asked again without an answer, it says the same.
    pub fn step(&mut self) -> Step {
        loop {
            let ready = match &self.state {
                State::Flags => self.take_flags(),
                State::Header => self.take_header(),
                &State::Data(header) => self.take_data(header),
                &State::Skip { option, left, reply } => self.skip(option, left, reply),
                State::Asked(Question::List) => return Step::List,
                &State::Asked(Question::Succeed(succession)) => return Step::Succeed(succession),
                State::Asked(Question::Open { name, option, .. }) => {
                    return Step::Open { name: name.clone(), only_info: *option == option::INFO };
                }
                State::Asked(Question::Look { name, contexts, .. }) => {
                    return Step::Look { name: name.clone(), contexts: contexts.clone() };
                }
                State::Ended(step) => return step.clone(),
            };
            match ready {
                Some(next) => self.state = next,
                None if self.bytes_seen > self.limits.max_handshake_bytes => {
                    self.state = close(CloseReason::TooManyBytes);
                }
                None => return Step::Read,
            }
        }
    }

    /// Answers [`Step::List`].
    pub fn listed(&mut self, exports: Result<Vec<ExportEntry>, ExportError>) {
        if self.state != State::Asked(Question::List) {
            return;
        }
        self.state = State::Header;
        match exports {
            Ok(exports) => {
                exports.iter().for_each(|export| self.put_server(export));
                self.ack(option::LIST);
            }
            Err(error) => self.put_export_error(option::LIST, &error),
        }
    }

    /// Answers [`Step::Look`], with those versions that are asked about and that the client may know of.
    pub fn looked(&mut self, versions: Result<Vec<Version>, ExportError>) {
        let Question::Look { option, name, contexts } = (match &self.state {
            State::Asked(question) => question.clone(),
            _ => return,
        }) else {
            return;
        };
        self.state = State::Header;
        let changed = match versions {
            Ok(versions) => versions,
            Err(error) => return self.put_export_error(option, &error),
        };
        let is_set = option == option::SET_META_CONTEXT;
        if is_set && changed.len() > CHANGED_MAX {
            const WORDS: &str = "a connection has at most 4 contexts of what has changed";
            return wire::put_option_reply(&mut self.output, option, reply_type::ERR_TOO_BIG, WORDS.as_bytes());
        }
        if contexts.allocation {
            self.put_context(option, allocation::ID, allocation::NAME);
        }
        for (id, version) in (changed::FIRST_ID..).zip(&changed) {
            self.put_context(option, id, &format!("{}{}", changed::PREFIX, version.name));
        }
        if is_set {
            self.selected = Some(Selected { export: name, allocation: contexts.allocation, changed });
        }
        self.ack(option);
    }

    /// A context and, if it is selected, its number.
    fn put_context(&mut self, option: u32, id: u32, name: &str) {
        let mut data = Vec::with_capacity(4 + name.len());
        data.put_u32(if option == option::SET_META_CONTEXT { id } else { 0 });
        data.put_slice(name.as_bytes());
        wire::put_option_reply(&mut self.output, option, reply_type::META_CONTEXT, &data);
    }

    /// Answers [`Step::Open`]. If transmission begins, the next step is [`Step::Enter`].
    pub fn opened(&mut self, export: Result<(ExportEntry, DeviceInfo), ExportError>) {
        let State::Asked(Question::Open { option, wanted, ref name }) = self.state else {
            return;
        };
        let selected = self.selected.as_ref().filter(|selected| selected.export == *name);
        self.agreed = Agreed {
            style: self.style,
            allocation: selected.is_some_and(|selected| selected.allocation),
            changed: selected.map_or_else(Vec::new, |selected| selected.changed.clone()),
        };
        self.state = match (option, export) {
            (option::EXPORT_NAME, Ok((_, device))) => {
                self.put_export_name(&device);
                State::Ended(Step::Enter)
            }
            (option::EXPORT_NAME, Err(_)) => close(CloseReason::NoSuchExport),
            (_, Ok((entry, device))) => {
                self.put_infos(option, &entry, &device, wanted);
                self.ack(option);
                if option == option::GO { State::Ended(Step::Enter) } else { State::Header }
            }
            (_, Err(error)) => {
                self.put_export_error(option, &error);
                State::Header
            }
        };
    }

    /// Answers [`Step::Succeed`]: whether nothing is left of the connections before.
    pub fn succeeded(&mut self, is_done: bool) {
        if !matches!(self.state, State::Asked(Question::Succeed(_))) {
            return;
        }
        match is_done {
            true => self.ack(option::SUCCEED),
            false => {
                let words = "earlier connections of this client do not end; try again";
                wire::put_option_reply(&mut self.output, option::SUCCEED, reply_type::ERR_POLICY, words.as_bytes());
            }
        }
        self.state = State::Header;
    }

    /// Answers [`Step::Open`] for an export that is served over TLS only (rule T4).
    pub fn needs_tls(&mut self) {
        let State::Asked(Question::Open { option, .. } | Question::Look { option, .. }) = self.state else {
            return;
        };
        self.state = match option {
            option::EXPORT_NAME => close(CloseReason::NoSuchExport),
            option => {
                // Where there is no TLS to be had, or it runs already, nobody is told to begin it (rules T2, T5).
                let (reply_type, text) = match self.tls {
                    Tls::Offered => {
                        (reply_type::ERR_TLS_REQD, "this export is served over TLS only; begin with STARTTLS")
                    }
                    _ => (reply_type::ERR_POLICY, "this export is served over TLS only, and not here"),
                };
                wire::put_option_reply(&mut self.output, option, reply_type, text.as_bytes());
                State::Header
            }
        };
    }

    fn take_flags(&mut self) -> Option<State> {
        let flags = u32::from_be_bytes(*self.input.first_chunk()?);
        self.input.advance(4);
        if flags & !client_flag::KNOWN != 0 {
            return Some(close(CloseReason::UnknownFlags(flags)));
        }
        // A client without FIXED_NEWSTYLE may only send EXPORT_NAME; if it sends more, it is served all the same (H3).
        self.pad_export_name = flags & client_flag::NO_ZEROES == 0;
        Some(State::Header)
    }

    fn take_header(&mut self) -> Option<State> {
        let Some(header) = OptionHeader::decode(self.input.first_chunk()?) else {
            return Some(close(CloseReason::BadMagic));
        };
        self.input.advance(OptionHeader::BYTES);
        self.options_seen += 1;
        if self.options_seen > self.limits.max_options {
            return Some(close(CloseReason::TooManyOptions));
        }
        let OptionHeader { option, len } = header;
        if option == option::SET_META_CONTEXT {
            // Whatever becomes of it (rule O27).
            self.selected = None;
        }
        let skip = |reply_type, text| State::Skip { option, left: len, reply: (reply_type, text) };
        Some(match option {
            option::ABORT => skip(reply_type::ACK, ""),
            option::EXPORT_NAME if self.style == Style::Extended => close(CloseReason::OnlyGo),
            option::EXPORT_NAME
                if self.shutting_down || self.tls == Tls::Required || len as usize > STRING_BYTES_MAX =>
            {
                close(CloseReason::NoSuchExport)
            }
            _ if self.shutting_down => skip(reply_type::ERR_SHUTDOWN, "the server is shutting down"),
            option::STARTTLS if len > 0 => skip(reply_type::ERR_INVALID, "STARTTLS carries no data"),
            option::STARTTLS => match self.tls {
                Tls::Off => skip(reply_type::ERR_UNSUP, "this server does not offer TLS"),
                Tls::Running => skip(reply_type::ERR_INVALID, "TLS runs already"),
                Tls::Offered | Tls::Required => self.start_tls(),
            },
            _ if self.tls == Tls::Required => {
                skip(reply_type::ERR_TLS_REQD, "this server speaks over TLS only; begin with STARTTLS")
            }
            option::LIST if len > 0 => skip(reply_type::ERR_INVALID, "LIST carries no data"),
            option::LIST if !self.limits.list_exports => {
                skip(reply_type::ERR_POLICY, "this server does not list its exports; ask for one by name")
            }
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS if len > 0 => {
                skip(reply_type::ERR_INVALID, "the option carries no data")
            }
            option::STRUCTURED_REPLY if self.style == Style::Extended => {
                skip(reply_type::ERR_EXT_HEADER_REQD, "extended headers were agreed, which take their place")
            }
            option::STRUCTURED_REPLY => {
                self.style = Style::Structured;
                skip(reply_type::ACK, "")
            }
            option::EXTENDED_HEADERS => {
                self.style = Style::Extended;
                skip(reply_type::ACK, "")
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT if self.style == Style::Simple => {
                skip(reply_type::ERR_INVALID, "metadata contexts need structured replies: ask for those first")
            }
            option::EXPORT_NAME
            | option::LIST
            | option::INFO
            | option::GO
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT
            | option::SUCCEED
                if len <= self.limits.max_option_bytes =>
            {
                State::Data(header)
            }
            option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT | option::SUCCEED => {
                skip(reply_type::ERR_TOO_BIG, "the option is longer than this server reads")
            }
            _ => skip(reply_type::ERR_UNSUP, "the option is not known to this server"),
        })
    }

    fn start_tls(&mut self) -> State {
        if !self.input.is_empty() {
            return close(CloseReason::PlainBehindStartTls);
        }
        self.ack(option::STARTTLS);
        State::Ended(Step::StartTls)
    }

    fn skip(&mut self, option: u32, left: u32, reply: (u32, &'static str)) -> Option<State> {
        let here = self.input.len().min(left as usize);
        self.input.advance(here);
        let left = left - here as u32; // here is at most left
        if left > 0 {
            self.state = State::Skip { option, left, reply };
            return None;
        }
        let (reply_type, text) = reply;
        wire::put_option_reply(&mut self.output, option, reply_type, text.as_bytes());
        Some(if option == option::ABORT { State::Ended(Step::Finish) } else { State::Header })
    }

    fn take_data(&mut self, header: OptionHeader) -> Option<State> {
        if self.input.len() < header.len as usize {
            self.make_room(header.len as usize);
            return None;
        }
        let data = self.input.split_to(header.len as usize);
        Some(match header.option {
            option::LIST => State::Asked(Question::List),
            option::EXPORT_NAME => match parse_string(&data) {
                Some(name) => State::Asked(Question::Open { option: header.option, name, wanted: Wanted::default() }),
                None => close(CloseReason::NoSuchExport),
            },
            option::INFO | option::GO => match parse_info(&data) {
                Ok((name, wanted)) => State::Asked(Question::Open { option: header.option, name, wanted }),
                Err(text) => self.invalid(header.option, text),
            },
            option::SUCCEED => match Succession::decode(&data) {
                Some(succession) => State::Asked(Question::Succeed(succession)),
                None => self.invalid(header.option, "SUCCEED carries a uuid and a number of 8 bytes"),
            },
            option => match parse_contexts(&data, option == option::LIST_META_CONTEXT) {
                Ok((name, contexts)) => State::Asked(Question::Look { option, name, contexts }),
                Err(BadContexts::Invalid(text)) => self.invalid(option, text),
                Err(BadContexts::TooMany) => {
                    const WORDS: &str = "the option asks for more contexts than this server looks for";
                    wire::put_option_reply(&mut self.output, option, reply_type::ERR_TOO_BIG, WORDS.as_bytes());
                    State::Header
                }
            },
        })
    }

    /// Room for a whole option and what is read ahead, and no more: a buffer that grew by itself would become twice as large.
    fn make_room(&mut self, option_bytes: usize) {
        let room = option_bytes + READ_BYTES;
        if self.input.capacity() < room {
            let mut input = BytesMut::with_capacity(room);
            input.extend_from_slice(&self.input);
            self.input = input;
        }
    }

    fn invalid(&mut self, option: u32, text: &str) -> State {
        wire::put_option_reply(&mut self.output, option, reply_type::ERR_INVALID, text.as_bytes());
        State::Header
    }

    fn ack(&mut self, option: u32) {
        wire::put_option_reply(&mut self.output, option, reply_type::ACK, &[]);
    }

    fn put_server(&mut self, export: &ExportEntry) {
        if !is_string(&export.name) {
            tracing::warn!(export = export.name, "left out of the list: the name cannot be sent over NBD");
            return;
        }
        let mut data = Vec::with_capacity(4 + export.name.len() + export.description.len());
        data.put_u32(export.name.len() as u32); // at most STRING_BYTES_MAX
        data.put_slice(export.name.as_bytes());
        data.put_slice(fit_string(&export.description).as_bytes());
        wire::put_option_reply(&mut self.output, option::LIST, reply_type::SERVER, &data);
    }

    fn put_export_name(&mut self, device: &DeviceInfo) {
        self.output.put_u64(device.size);
        self.output.put_u16(transmission_flags(device, self.style));
        if self.pad_export_name {
            self.output.put_bytes(0, EXPORT_NAME_PAD);
        }
    }

    /// EXPORT as it must be, and BLOCK_SIZE even unasked: clients that know it profit, others ignore it (rule S10).
    fn put_infos(&mut self, option: u32, entry: &ExportEntry, device: &DeviceInfo, wanted: Wanted) {
        let mut data = Vec::new();
        data.put_u16(info::EXPORT);
        data.put_u64(device.size);
        data.put_u16(transmission_flags(device, self.style));
        wire::put_option_reply(&mut self.output, option, reply_type::INFO, &data);

        data.clear();
        data.put_u16(info::BLOCK_SIZE);
        let minimum = minimum_block_size(self.limits.minimum_block_size, device);
        data.put_u32(minimum);
        data.put_u32(preferred_block_size(device).max(minimum));
        data.put_u32(self.limits.max_payload);
        wire::put_option_reply(&mut self.output, option, reply_type::INFO, &data);

        if wanted.name {
            self.put_text_info(option, info::NAME, &entry.name);
        }
        if wanted.description && !entry.description.is_empty() {
            self.put_text_info(option, info::DESCRIPTION, &entry.description);
        }
    }

    fn put_text_info(&mut self, option: u32, info: u16, text: &str) {
        let mut data = Vec::with_capacity(2 + text.len());
        data.put_u16(info);
        data.put_slice(fit_string(text).as_bytes());
        wire::put_option_reply(&mut self.output, option, reply_type::INFO, &data);
    }

    fn put_export_error(&mut self, option: u32, error: &ExportError) {
        let reply_type = match error {
            ExportError::Unknown(_) => reply_type::ERR_UNKNOWN,
            ExportError::Unavailable(_) | ExportError::Elsewhere(_) => reply_type::ERR_POLICY,
            ExportError::ShuttingDown => reply_type::ERR_SHUTDOWN,
        };
        let text = error.to_string();
        wire::put_option_reply(&mut self.output, option, reply_type, fit_string(&text).as_bytes());
    }
}

/// What the export can do, told to the client (proto.md, "Transmission flags").
pub fn transmission_flags(device: &DeviceInfo, style: Style) -> u16 {
    use transmission_flag::*;
    let changes = match device.read_only {
        true => READ_ONLY,
        false => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
    };
    let in_one_piece = if style >= Style::Structured { SEND_DF } else { 0 };
    HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE | CAN_MULTI_CONN | changes | in_one_piece
}

/// The minimum block size that a client is told: what is configured, a power of two up to 64 KiB, or less if the export would
/// end with a part of such a block (rule S2).
pub fn minimum_block_size(configured: u32, device: &DeviceInfo) -> u32 {
    configured.min(1 << device.size.trailing_zeros().min(16))
}

/// The unit of mapping, within what the protocol allows (proto.md, "Size constraints").
fn preferred_block_size(device: &DeviceInfo) -> u32 {
    device.block_size.clamp(512, 1 << 20).next_power_of_two()
}

fn close(reason: CloseReason) -> State {
    State::Ended(Step::Close(reason))
}

/// Data of INFO and GO: u32 name length, name, u16 count, count times u16; the total must match (rule O12).
fn parse_info(data: &[u8]) -> Result<(String, Wanted), &'static str> {
    const BAD_LENGTH: &str = "the lengths inside the option do not add up to its length";
    let (name_len, rest) = data.split_first_chunk().ok_or(BAD_LENGTH)?;
    let name_len = u32::from_be_bytes(*name_len) as usize;
    if name_len > rest.len() {
        return Err(BAD_LENGTH);
    }
    let (name, rest) = rest.split_at(name_len);
    let (count, rest) = rest.split_first_chunk().ok_or(BAD_LENGTH)?;
    let (asked, []) = rest.as_chunks::<2>() else {
        return Err(BAD_LENGTH);
    };
    if asked.len() != usize::from(u16::from_be_bytes(*count)) {
        return Err(BAD_LENGTH);
    }
    let name = parse_string(name).ok_or("the name is not UTF-8, has a NUL, or is longer than 4096 bytes")?;
    let asked_for = |info: u16| asked.contains(&info.to_be_bytes());
    Ok((name, Wanted { name: asked_for(info::NAME), description: asked_for(info::DESCRIPTION) }))
}

/// Why contexts are not looked for.
#[derive(Debug)]
enum BadContexts {
    Invalid(&'static str),
    TooMany,
}

impl From<&'static str> for BadContexts {
    fn from(text: &'static str) -> BadContexts {
        BadContexts::Invalid(text)
    }
}

/// Data of LIST and SET_META_CONTEXT: u32 name length, name, u32 count, count times u32 length and query; the total must match
/// (rule O22). A list of nothing asks for all (O24).
fn parse_contexts(data: &[u8], is_list: bool) -> Result<(String, Contexts), BadContexts> {
    const BAD_LENGTH: &str = "the lengths inside the option do not add up to its length";
    let (name, rest) = split_counted(data).ok_or(BAD_LENGTH)?;
    let (count, mut rest) = rest.split_first_chunk().ok_or(BAD_LENGTH)?;
    let count = u32::from_be_bytes(*count);
    let asks_for_all = is_list && count == 0;
    let mut contexts = Contexts { allocation: asks_for_all, all_changed: asks_for_all, changed: Vec::new() };
    for _ in 0..count {
        let (query, after) = split_counted(rest).ok_or(BAD_LENGTH)?;
        rest = after;
        let query = as_string(query).ok_or("a query is not UTF-8, has a NUL, or is longer than 4096 bytes")?;
        if !query.contains(':') {
            return Err(BadContexts::Invalid("a query is not NAMESPACE:LEAF"));
        }
        contexts.add(query, is_list)?;
    }
    if !rest.is_empty() {
        return Err(BadContexts::Invalid(BAD_LENGTH));
    }
    let name = parse_string(name).ok_or("the name is not UTF-8, has a NUL, or is longer than 4096 bytes")?;
    Ok((name, contexts))
}

/// A u32 and so many bytes, and the rest.
fn split_counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

fn parse_string(bytes: &[u8]) -> Option<String> {
    as_string(bytes).map(str::to_owned)
}

fn as_string(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok().filter(|text| is_string(text))
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
