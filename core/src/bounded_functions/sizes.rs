//! How many bytes a call is going to make, from its arguments. NULL makes none; what is not known counts as too much.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, IntervalMonthDayNanoType, TimeUnit},
};
use datafusion::{common::Result as DfResult, logical_expr::ColumnarValue};

/// Of an element of an array, at least: what finds it in the array it is copied from takes as much.
const ELEMENT_BYTES: u64 = 8;
/// A regular expression may match anywhere. What puts in no more than this for each match of a text that is no longer than the
/// other does not count: it would be counted for the few matches of ordinary rows as well.
const SHORT_REPLACEMENT: usize = 64;
const SHORT_TEXT: usize = 1 << 20;

/// How the size of a result follows from the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// `repeat(text, count)`.
    Repeat,
    /// `lpad(text, length, ...)`.
    Pad,
    /// `replace(text, from, to)`.
    Replace,
    /// `regexp_replace(text, pattern, to, ...)`.
    ReplaceMatches,
    /// `range(start, stop, step)`, with or without the last.
    Range,
    /// `array_repeat(element, count)`.
    Elements,
    /// `array_replace_all(array, from, to)`.
    ReplaceElements,
    /// `array_resize(array, length, element)`.
    Resize,
    /// `array_to_string(array, separator, null)`.
    Join,
}

/// One argument's values.
struct Argument {
    /// Only one value, if it is constant.
    values: ArrayRef,
    /// As integers, if they are any, or microseconds.
    numbers: Option<Int64Array>,
    is_constant: bool,
}

impl Argument {
    fn new(argument: &ColumnarValue) -> DfResult<Self> {
        let (values, is_constant) = match argument {
            ColumnarValue::Array(values) => (Arc::clone(values), false),
            ColumnarValue::Scalar(value) => (value.to_array_of_size(1)?, true),
        };
        let times = match values.data_type() {
            integers if integers.is_integer() => Some(Arc::clone(&values)),
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => {
                Some(cast(&values, &DataType::Timestamp(TimeUnit::Microsecond, None))?)
            }
            _ => None,
        };
        let numbers = times.map(|values| cast(&values, &DataType::Int64)).transpose()?;
        let numbers = numbers.map(|numbers| numbers.as_primitive::<Int64Type>().clone());
        Ok(Self { values, numbers, is_constant })
    }

    fn at(&self, row: usize) -> Option<usize> {
        let row = if self.is_constant { 0 } else { row };
        (!self.values.data_type().is_null() && self.values.is_valid(row)).then_some(row)
    }

    fn text(&self, row: usize) -> Option<&str> {
        text(&self.values, self.at(row)?)
    }

    fn number(&self, row: usize) -> Option<i64> {
        let (row, numbers) = (self.at(row)?, self.numbers.as_ref()?);
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    /// Zero for what is negative.
    fn count(&self, row: usize) -> Option<u64> {
        self.number(row).map(|count| u64::try_from(count).unwrap_or(0))
    }

    /// Bytes of a value.
    fn bytes(&self, row: usize) -> Option<u64> {
        let row = self.at(row)?;
        Some(text(&self.values, row).map_or_else(|| copied(&self.values.slice(row, 1)), |text| text.len() as u64))
    }

    /// An array.
    fn elements(&self, row: usize) -> Option<ArrayRef> {
        let row = self.at(row)?;
        match self.values.data_type() {
            DataType::List(_) => Some(self.values.as_list::<i32>().value(row)),
            DataType::LargeList(_) => Some(self.values.as_list::<i64>().value(row)),
            DataType::FixedSizeList(..) => Some(self.values.as_fixed_size_list().value(row)),
            _ => None,
        }
    }

    /// An interval in nanoseconds, or 0; a month is a short one. `None` also where its parts have different signs: who adds it
    /// again and again may never get anywhere.
    fn span(&self, row: usize) -> Option<i128> {
        let row = self.at(row)?;
        let interval = self.values.as_primitive_opt::<IntervalMonthDayNanoType>()?.value(row);
        let parts = [i64::from(interval.months), i64::from(interval.days), interval.nanoseconds];
        let one_way = parts.iter().all(|part| *part >= 0) || parts.iter().all(|part| *part <= 0);
        let days = i128::from(interval.months) * 28 + i128::from(interval.days);
        one_way.then_some(days * 86_400_000_000_000 + i128::from(interval.nanoseconds))
    }
}

fn text(values: &ArrayRef, row: usize) -> Option<&str> {
    match values.data_type() {
        DataType::Utf8 => Some(values.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(values.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(values.as_string_view().value(row)),
        _ => None,
    }
}

/// The children of values that are made of others.
fn children(values: &ArrayRef) -> Option<Vec<ArrayRef>> {
    let of = |offsets: (usize, usize), child: &ArrayRef| vec![child.slice(offsets.0, offsets.1 - offsets.0)];
    let span = |offsets: &[i32]| Some((*offsets.first()? as usize, *offsets.last()? as usize));
    let large_span = |offsets: &[i64]| Some((*offsets.first()? as usize, *offsets.last()? as usize));
    match values.data_type() {
        DataType::List(_) => {
            let list = values.as_list::<i32>();
            Some(of(span(list.value_offsets())?, list.values()))
        }
        DataType::LargeList(_) => {
            let list = values.as_list::<i64>();
            Some(of(large_span(list.value_offsets())?, list.values()))
        }
        DataType::FixedSizeList(_, width) => {
            let (list, width) = (values.as_fixed_size_list(), usize::try_from(*width).ok()?);
            Some(vec![list.values().slice(list.offset() * width, list.len() * width)])
        }
        DataType::Map(..) => {
            let map = values.as_map();
            let (first, end) = span(map.value_offsets())?;
            Some(map.entries().columns().iter().map(|column| column.slice(first, end - first)).collect())
        }
        DataType::Struct(_) => Some(values.as_struct().columns().to_vec()),
        _ => None,
    }
}

/// Bytes of a copy of all values.
fn copied(values: &ArrayRef) -> u64 {
    let rows = values.len() as u64;
    if let Some(children) = children(values) {
        return children.iter().map(copied).fold(rows.saturating_mul(ELEMENT_BYTES), u64::saturating_add);
    }
    let texts: usize = match values.data_type() {
        DataType::Binary => values.as_binary::<i32>().iter().flatten().map(<[u8]>::len).sum(),
        DataType::LargeBinary => values.as_binary::<i64>().iter().flatten().map(<[u8]>::len).sum(),
        DataType::BinaryView => values.as_binary_view().iter().flatten().map(<[u8]>::len).sum(),
        _ => (0..values.len()).filter_map(|row| text(values, row)).map(str::len).sum(),
    };
    let width = values.data_type().primitive_width().unwrap_or(0) as u64;
    rows.saturating_mul(width.max(ELEMENT_BYTES)).saturating_add(texts as u64)
}

/// How many values there are that are made of no others, and how long they are as text, about.
fn printed(values: &ArrayRef) -> (u64, u64) {
    if let Some(children) = children(values) {
        let all = children.iter().map(printed);
        return all
            .fold((0, 0), |(count, bytes), (more, longer)| (count.saturating_add(more), bytes.saturating_add(longer)));
    }
    let rows = values.len() as u64;
    let bytes = match values.data_type() {
        DataType::Null => 0,
        // All digits are printed.
        DataType::Float64 => {
            let digits = |value: f64| if (1e-9..1e20).contains(&value.abs()) || value == 0.0 { 24 } else { 350 };
            values.as_primitive::<Float64Type>().iter().flatten().map(digits).sum()
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => copied(values),
        numbers if numbers.is_integer() => rows.saturating_mul(20),
        _ => rows.saturating_mul(64),
    };
    (rows, bytes)
}

/// Of the results of a call.
pub(super) struct Sizes {
    arguments: Vec<Argument>,
    growth: Growth,
}

impl Sizes {
    pub(super) fn new(arguments: &[ColumnarValue], growth: Growth) -> DfResult<Self> {
        let arguments = arguments.iter().map(Argument::new).collect::<DfResult<Vec<_>>>()?;
        Ok(Self { arguments, growth })
    }

    /// Whether one row's result is that of all.
    pub(super) fn are_constant(&self) -> bool {
        self.arguments.iter().all(|argument| argument.is_constant)
    }

    /// Bytes of the result for a row.
    pub(super) fn of(&self, row: usize) -> u64 {
        self.grown(row).unwrap_or(0)
    }

    fn grown(&self, row: usize) -> Option<u64> {
        let argument = |number: usize| self.arguments.get(number);
        let first = argument(0)?;
        let second = argument(1).unwrap_or(first);
        match self.growth {
            Growth::Repeat => Some(first.bytes(row)?.saturating_mul(second.count(row)?)),
            // Room is made for NULL as well.
            Growth::Pad => second.count(row),
            Growth::Replace => {
                let (text, from, to) = (first.text(row)?, second.text(row)?, argument(2)?.text(row)?);
                if from.is_empty() || to.len() <= from.len() {
                    return None;
                }
                let grown = |times: usize| (times as u64).saturating_mul((to.len() - from.len()) as u64);
                // To count costs as much as to replace.
                let at_most = grown(text.len() / from.len());
                Some(if at_most <= text.len() as u64 { 0 } else { grown(text.matches(from).count()) })
            }
            Growth::ReplaceMatches => {
                let (text, to) = (first.text(row)?, argument(2)?.text(row)?);
                let is_short = to.len() <= SHORT_REPLACEMENT && text.len() <= SHORT_TEXT;
                Some(if is_short { 0 } else { (text.len() as u64 + 1).saturating_mul(to.len() as u64) })
            }
            Growth::Range => Some(self.range(row)?.saturating_mul(ELEMENT_BYTES)),
            Growth::Elements => {
                let element = first.bytes(row).unwrap_or(0).max(ELEMENT_BYTES);
                Some(element.saturating_mul(second.count(row)?))
            }
            Growth::ReplaceElements => {
                Some((first.elements(row)?.len() as u64).saturating_mul(argument(2)?.bytes(row)?))
            }
            Growth::Resize => {
                let element = argument(2).and_then(|element| element.bytes(row)).unwrap_or(0);
                Some(element.max(ELEMENT_BYTES).saturating_mul(second.count(row)?))
            }
            Growth::Join => {
                let between = |argument: Option<&Argument>| argument.and_then(|a| a.bytes(row)).unwrap_or(0);
                let (count, bytes) = printed(&first.elements(row)?);
                let between = between(argument(1)).saturating_add(between(argument(2)));
                Some(count.saturating_mul(between).saturating_add(bytes))
            }
        }
    }

    /// The elements from a start to a stop. A single argument is a stop.
    fn range(&self, row: usize) -> Option<u64> {
        let number = |argument: &Argument| argument.number(row).map(i128::from);
        let (start, stop, step) = match self.arguments.as_slice() {
            [stop] => (0, number(stop)?, 1),
            [start, stop] => (number(start)?, number(stop)?, 1),
            [start, stop, step, ..] if step.numbers.is_some() => (number(start)?, number(stop)?, number(step)?),
            [start, stop, step, ..] => {
                step.at(row)?;
                let Some(span) = step.span(row) else { return Some(u64::MAX) };
                (number(start)? * 1000, number(stop)? * 1000, span)
            }
            [] => return None,
        };
        let length = stop - start;
        if step == 0 || length.signum() * step.signum() < 0 {
            return Some(0);
        }
        Some(u64::try_from(length / step + 1).unwrap_or(u64::MAX))
    }
}
