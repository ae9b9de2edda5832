//! Values of every type come back as they went in, to the bit, also after a restart.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray};
use drsdb_core::SqlType;

use super::support::{Factory, Fixture, TYPES, VALUES, batch, people, plain, request, table, values};

pub fn every_type_keeps_null_and_extremes(factory: Factory) {
    let mut fixture = Fixture::new(factory);
    let names: Vec<String> = (0..TYPES.len()).map(|at| format!("c{at}")).collect();
    let mut columns = vec![("id", SqlType::BigInt)];
    columns.extend(names.iter().zip(TYPES).map(|(name, sql_type)| (name.as_str(), *sql_type)));
    let table = table(&columns, &[0]);
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(0..VALUES as i64))];
    arrays.extend(TYPES.iter().map(|sql_type| values(*sql_type)));
    let rows = batch(&table, arrays);
    fixture.load(&table, &rows, 1);
    assert_eq!(plain(&fixture.read(&table, 1)), plain(&rows));
    fixture.restart();
    assert_eq!(plain(&fixture.read(&table, 1)), plain(&rows));
}

pub fn empty_text_is_not_null(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let names = StringViewArray::from(vec![Some(""), None, Some("NULL")]);
    let rows = batch(&table, vec![Arc::new(Int64Array::from(vec![1, 2, 3])), Arc::new(names)]);
    fixture.load(&table, &rows, 1);
    let read = fixture.read(&table, 1);
    assert_eq!(plain(&read), plain(&rows));
    assert_eq!(read.column(1).null_count(), 1);
}

pub fn texts_of_a_megabyte(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    // No two alike, and nothing that compresses to nothing.
    let text = |seed: u32| {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from_u32(0x4e00 + (state >> 16) % 0x5000).unwrap()
        };
        (0..(1 << 20) / 3).map(|_| next()).collect::<String>()
    };
    let names: StringViewArray = (0..12).map(|seed| (seed != 5).then(|| text(seed))).collect();
    let rows = batch(&table, vec![Arc::new(Int64Array::from_iter_values(0..12)), Arc::new(names)]);
    fixture.load(&table, &rows, 1);
    let read = fixture.read(&table, 1);
    assert!(plain(&read) == plain(&rows), "megabyte texts came back changed");
}

pub fn sliced_views_are_stored_alone(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let names: StringViewArray = (0..1000).map(|id| Some(format!("a name longer than a view holds: {id}"))).collect();
    let rows = batch(&table, vec![Arc::new(Int64Array::from_iter_values(0..1000)), Arc::new(names)]);
    let slice: RecordBatch = rows.slice(500, 3);
    fixture.load(&table, &slice, 1);
    let read = fixture.scan(request(&table, 1)).unwrap();
    assert_eq!(plain(&read), plain(&slice));
    let bytes: usize = read.column(1).as_string_view().data_buffers().iter().map(|buffer| buffer.len()).sum();
    assert!(bytes < 10_000, "three names carry {bytes} bytes");
}
