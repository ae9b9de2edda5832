//! The servers' error type. One enum value for each thing a caller can do about it; the rest is a [`WireError`].

use arrow::error::ArrowError;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use datafusion::error::DataFusionError;
use drsdb_proto::{ErrorCode, WireError, v1};
use prost::Message;

/// The result of everything that can fail in a server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with a code of the closed set; turns into a [`tonic::Status`] whose details survive the wire.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Carries its code, message, hint and fields itself.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// From planning or execution; the code is found by looking into it.
    #[error(transparent)]
    DataFusion(#[from] DataFusionError),
    /// From a file or a socket.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, on which file.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl Error {
    /// An error of `code` that says `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        WireError::new(code, message).into()
    }

    /// A defect: a rule that the code itself should have kept was broken.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// Wraps an I/O error with what was being done.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Error::Io { context: context.into(), source }
    }

    /// The error's kind.
    pub fn code(&self) -> ErrorCode {
        self.to_wire().code
    }

    /// The error as it crosses the wire.
    pub fn to_wire(&self) -> WireError {
        match self {
            Error::Wire(error) => error.clone(),
            Error::DataFusion(error) => wire_of_datafusion(error),
            Error::Io { source, .. } if is_disk_full(source) => WireError::new(ErrorCode::DiskFull, self.to_string())
                .with_hint("free space on the server's disk, then retry"),
            Error::Io { .. } => WireError::new(ErrorCode::Internal, self.to_string()),
        }
    }

    /// The error inside a `DataFusionError`, so that it passes through a plan unharmed.
    pub fn into_datafusion(self) -> DataFusionError {
        match self {
            Error::DataFusion(error) => error,
            other => DataFusionError::External(Box::new(Carried(other.to_wire()))),
        }
    }
}

/// An error inside a plan. Between storage servers, datafusion-distributed hands on only the text of errors that are not
/// DataFusion's own: so the text carries the whole error.
#[derive(Debug)]
struct Carried(WireError);

/// Stands before the encoded error in the text of a [`Carried`].
const CARRIED: &str = " [drsdb-error ";

impl std::fmt::Display for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let detail = STANDARD_NO_PAD.encode(self.0.to_detail().encode_to_vec());
        write!(f, "{}{CARRIED}{detail}]", self.0)
    }
}

impl std::error::Error for Carried {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// The error that a text carries, whatever is written around it.
fn carried_in(text: &str) -> Option<WireError> {
    let (_, detail) = text.rsplit_once(CARRIED)?;
    let (detail, _) = detail.split_once(']')?;
    let detail = STANDARD_NO_PAD.decode(detail).ok()?;
    v1::ErrorDetail::decode(detail.as_slice()).ok().map(WireError::from_detail)
}

/// The status of a call between storage servers whose error must stay whole when only its text is handed on.
pub fn carried_status(error: WireError) -> tonic::Status {
    let text = Carried(error.clone()).to_string();
    let typed = tonic::Status::from(error);
    tonic::Status::with_metadata(typed.code(), text, typed.metadata().clone())
}

fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Whether an error of execution is about the servers that run a query together, and not about its values: these have no
/// type of their own.
fn is_of_servers(text: &str) -> bool {
    const BEGINNINGS: [&str; 3] = [
        "Worker::",
        "Error connecting to Distributed DataFusion worker",
        "Error waiting for Distributed DataFusion channel",
    ];
    BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
}

/// Finds the code of an error that DataFusion raised or passed on.
fn wire_of_datafusion(error: &DataFusionError) -> WireError {
    // The first typed error in the chain of sources wins: it was raised by drsdb, or came over the wire.
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(wire) = current.downcast_ref::<WireError>() {
            return wire.clone();
        }
        if let Some(Error::Wire(wire)) = current.downcast_ref::<Error>() {
            return wire.clone();
        }
        if let Some(status) = current.downcast_ref::<tonic::Status>() {
            return WireError::from(status.clone());
        }
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && is_disk_full(io)
        {
            return WireError::new(ErrorCode::DiskFull, error.strip_backtrace());
        }
        source = current.source();
    }
    let root = error.find_root();
    // Messages between servers nest as plans do, and the library that reads them bounds that.
    let text = root.to_string();
    if text.contains("failed to decode Protobuf message") && text.contains("recursion limit reached") {
        return WireError::new(ErrorCode::ResourceExhausted, "the statement nests too deeply for the servers that run it")
            .with_hint(
                "nest expressions less than 45 deep and join less than 17 tables at a time: compute parts of it into a table \
                 first (CREATE TABLE ... AS)",
            );
    }
    if let DataFusionError::External(other) = root
        && let Some(carried) = carried_in(&other.to_string())
    {
        return carried;
    }
    if let Some(wire) = of_functions(&text) {
        return wire;
    }
    let code = match root {
        DataFusionError::Execution(text) if is_of_servers(text) => {
            return WireError::new(ErrorCode::Unavailable, root.strip_backtrace())
                .with_hint("a storage server did not do its part of the query: retry");
        }
        DataFusionError::SQL(..) => ErrorCode::Syntax,
        DataFusionError::Plan(_) | DataFusionError::SchemaError(..) => ErrorCode::InvalidArgument,
        DataFusionError::NotImplemented(_) => ErrorCode::Unsupported,
        DataFusionError::ResourcesExhausted(_) => ErrorCode::ResourceExhausted,
        DataFusionError::ArrowError(arrow, _) => match arrow.as_ref() {
            ArrowError::DivideByZero | ArrowError::ArithmeticOverflow(_) => ErrorCode::InvalidValue,
            ArrowError::CastError(_) | ArrowError::ParseError(_) => ErrorCode::InvalidValue,
            // Functions such as abs and gcd have no other way to say it.
            ArrowError::ComputeError(text) if says_overflow(text) => ErrorCode::InvalidValue,
            ArrowError::InvalidArgumentError(_) => ErrorCode::InvalidArgument,
            _ => ErrorCode::Internal,
        },
        DataFusionError::Execution(_) | DataFusionError::Configuration(_) => ErrorCode::InvalidArgument,
        _ => ErrorCode::Internal,
    };
    WireError::new(code, plain_text(root))
}

/// What functions have to say of their arguments, and have no type of error for.
fn of_functions(text: &str) -> Option<WireError> {
    if let Some((_, parsing)) = text.split_once("regex parse error:") {
        let why = parsing.rsplit_once("error: ").map_or(parsing, |(_, why)| why).trim();
        let why = why.lines().next().unwrap_or(why);
        let error = WireError::new(ErrorCode::InvalidValue, format!("invalid regular expression: {why}"));
        return Some(error.with_hint("a backslash before a character has it stand for itself"));
    }
    if let Some((_, rest)) = text.split_once("Function '")
        && let Some((name, rest)) = rest.split_once("' failed to match any signature")
    {
        let received = rest.split_once("but received ").and_then(|(_, of)| of.split_once(" (")).map(|(of, _)| of);
        let message = match received {
            Some(received) => format!("{name} takes no argument of type {received}"),
            None => format!("{name} does not take arguments of these types"),
        };
        return Some(WireError::new(ErrorCode::TypeMismatch, message).with_hint("CAST the argument to another type"));
    }
    if text.contains("Decimal scale") && text.contains("the minimum supported scale") {
        let error = WireError::new(ErrorCode::InvalidValue, "a number's exponent is out of range");
        return Some(error.with_hint("DOUBLE has exponents from -307 to 308: write CAST('1e300' AS DOUBLE)"));
    }
    let complaint = text.strip_prefix("Arrow error: ").unwrap_or(text);
    let complaint = complaint.strip_prefix("Compute error: ")?.strip_prefix("Execution error: ")?;
    Some(WireError::new(ErrorCode::InvalidValue, complaint))
}

fn says_overflow(text: &str) -> bool {
    text.contains("overflow") || text.contains("Overflow")
}

/// What an error says, without the names of the layers that it came through.
fn plain_text(root: &DataFusionError) -> String {
    const LAYERS: [&str; 6] = [
        "Arrow error: ",
        "Error during planning: ",
        "Execution error: ",
        "Cast error: ",
        "Parser error: ",
        "Invalid argument error: ",
    ];
    if let DataFusionError::ArrowError(arrow, _) = root
        && matches!(arrow.as_ref(), ArrowError::DivideByZero)
    {
        return "division by zero".to_owned();
    }
    if let DataFusionError::ArrowError(arrow, _) = root
        && let ArrowError::ComputeError(text) = arrow.as_ref()
        && says_overflow(text)
    {
        // "Int64Array overflow on abs(-9223372036854775808)": the array is nobody's business.
        let what = text.split_once("Array overflow on ").map(|(_, what)| format!("overflow on {what}"));
        return format!("Arithmetic overflow: {}", what.as_ref().unwrap_or(text));
    }
    let text = root.strip_backtrace();
    let mut rest = text.as_str();
    while let Some(inner) = LAYERS.iter().find_map(|layer| rest.strip_prefix(layer)) {
        rest = inner;
    }
    // An address where nobody knows drsdb.
    let asked = rest.find("This issue was likely caused by a bug in DataFusion");
    rest[..asked.unwrap_or(rest.len())].trim_end().to_owned()
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        Error::DataFusion(error.into())
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Error::Wire(status.into())
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        error.to_wire().into()
    }
}

/// The candidate closest to `name`, if one is close enough to be what was meant.
pub fn nearest_name<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.chars().count() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_error_survives_a_plan() {
        let error = Error::new(ErrorCode::Corrupt, "segment 7");
        let wrapped = error.into_datafusion().context("reading").context("more");
        assert_eq!(Error::from(wrapped).code(), ErrorCode::Corrupt);
    }

    #[test]
    fn a_typed_error_survives_as_text() {
        let error = WireError::new(ErrorCode::Unavailable, "gone]").with_hint("wait").with_field("server", "[::1]:1");
        let status = carried_status(error.clone());
        // As one server tells it to the next: `External` becomes its text.
        let told = DataFusionError::External(DataFusionError::External(Box::new(status)).to_string().into());
        assert_eq!(Error::from(told.context("stage 1")).to_wire(), error);
        let told = Error::from(error.clone()).into_datafusion().to_string();
        assert_eq!(Error::from(DataFusionError::External(told.into())).to_wire(), error);
        let plain = DataFusionError::External("no [drsdb-error here]".into());
        assert_eq!(Error::from(plain).code(), ErrorCode::Internal);
    }

    #[test]
    fn a_server_that_does_not_do_its_part_is_unavailable() {
        let late = "Worker::execute_task timed-out while waiting for the plan to be set by the coordinator. (elapsed)";
        let code = |text: &str| Error::from(DataFusionError::Execution(text.to_owned()).context("stage")).code();
        assert_eq!(code(late), ErrorCode::Unavailable);
        assert_eq!(code("Exceeded the maximum length"), ErrorCode::InvalidArgument);
    }

    #[test]
    fn a_function_that_overflows_blames_the_value() {
        let wire = |text: &str| Error::from(ArrowError::ComputeError(text.to_owned())).to_wire();
        let abs = wire("Int64Array overflow on abs(-9223372036854775808)");
        assert_eq!(abs.code, ErrorCode::InvalidValue);
        assert_eq!(abs.message, "Arithmetic overflow: overflow on abs(-9223372036854775808)");
        let gcd = wire("Signed integer overflow in GCD(-9223372036854775808, 0)");
        assert_eq!(gcd.code, ErrorCode::InvalidValue);
        assert_eq!(wire("a kernel is broken").code, ErrorCode::Internal);
    }

    #[test]
    fn what_functions_say_of_their_arguments_blames_these() {
        let wire = |error: DataFusionError| Error::from(error).to_wire();
        let regex = "regex parse error:\n    (\n    ^\nerror: unclosed group";
        for error in [
            DataFusionError::External(regex.into()),
            // As one server tells it to the next.
            DataFusionError::External(format!("External error: {regex}").into()),
            ArrowError::ComputeError(format!("Regular expression did not compile: {regex}")).into(),
        ] {
            let error = wire(error);
            assert_eq!(error.code, ErrorCode::InvalidValue);
            assert_eq!(error.message, "invalid regular expression: unclosed group");
        }
        let root = wire(ArrowError::ComputeError("Execution error: cannot take square root".to_owned()).into());
        assert_eq!((root.code, root.message.as_str()), (ErrorCode::InvalidValue, "cannot take square root"));
        let signature = "Internal error: Function 'sum' failed to match any signature, errors: Error during planning: \
                         Function 'sum' requires Decimal, but received String (DataType: Utf8View).,Error during ...";
        let signature = wire(DataFusionError::Plan(signature.to_owned()));
        assert_eq!(signature.code, ErrorCode::TypeMismatch);
        assert_eq!(signature.message, "sum takes no argument of type String");
        let bug = "a size\nThis issue was likely caused by a bug in DataFusion's code. Please help us to resolve this";
        let bug = wire(DataFusionError::Internal(bug.to_owned()));
        assert_eq!(bug.code, ErrorCode::Internal);
        assert!(bug.message.ends_with("a size"), "{bug}");
    }

    #[test]
    fn layers_are_not_named() {
        let text = |error: ArrowError| Error::from(error).to_wire().message;
        assert_eq!(text(ArrowError::DivideByZero), "division by zero");
        assert_eq!(text(ArrowError::CastError("no date".to_owned())), "no date");
        let plan = DataFusionError::Plan("no such thing".to_owned()).context("somewhere");
        assert_eq!(Error::from(plan).to_wire().message, "no such thing");
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest_name("lineitm", ["orders", "lineitem"]), Some("lineitem"));
        assert_eq!(nearest_name("foo", ["orders", "lineitem"]), None);
    }
}
