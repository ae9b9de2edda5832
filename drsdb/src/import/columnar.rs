//! Parquet and Arrow files: batches as they are, the table's columns picked by name. The server casts them.

use std::{
    fs::File,
    io::{BufReader, Read as _, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    ipc::reader::{FileReader, StreamReader},
};
use drsdb_client::Error;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use super::{Read, Reader, Target, columns, unreadable};

/// Rows of a batch read from Parquet.
const PARQUET_BATCH_ROWS: usize = 16 * 1024;

/// The first bytes of an Arrow file; a stream begins otherwise.
const ARROW_FILE_MAGIC: &[u8] = b"ARROW1";

/// Opens a Parquet file.
pub fn open_parquet(path: &Path, file: File, target: &Target, wanted: Option<&[String]>) -> Result<Reader, Error> {
    let total_bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| unreadable(path, &error))?;
    let picked = Picked::new(path, builder.schema(), target, wanted)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), picked.positions.iter().copied());
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let reader = builder.with_projection(mask).with_batch_size(PARQUET_BATCH_ROWS).build();
    let batches = reader.map_err(|error| unreadable(path, &error))?;
    Ok(reader_of(path, picked, batches, Weight::OfRow(total_bytes as f64 / rows.max(1) as f64), total_bytes))
}

/// Opens an Arrow IPC file or stream.
pub fn open_arrow(path: &Path, mut file: File, target: &Target, wanted: Option<&[String]>) -> Result<Reader, Error> {
    let total_bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let mut magic = Vec::new();
    let read = file.by_ref().take(ARROW_FILE_MAGIC.len() as u64).read_to_end(&mut magic);
    read.and_then(|_| file.seek(SeekFrom::Start(0))).map_err(|error| unreadable(path, &error))?;
    let bad = |error: ArrowError| unreadable(path, &error);
    let file = BufReader::new(file);
    if magic == ARROW_FILE_MAGIC {
        let schema = FileReader::try_new(file, None).map_err(bad)?.schema();
        let picked = Picked::new(path, &schema, target, wanted)?;
        let file = BufReader::new(File::open(path).map_err(|error| unreadable(path, &error))?);
        let batches = FileReader::try_new(file, Some(picked.positions.clone())).map_err(bad)?;
        Ok(reader_of(path, picked, batches, Weight::OfMemory, total_bytes))
    } else {
        let schema = StreamReader::try_new(file, None).map_err(bad)?.schema();
        let picked = Picked::new(path, &schema, target, wanted)?;
        let file = BufReader::new(File::open(path).map_err(|error| unreadable(path, &error))?);
        let batches = StreamReader::try_new(file, Some(picked.positions.clone())).map_err(bad)?;
        Ok(reader_of(path, picked, batches, Weight::OfMemory, total_bytes))
    }
}

/// The file's columns that are loaded, ascending, and the schema they make under the table's names.
struct Picked {
    positions: Vec<usize>,
    schema: SchemaRef,
}

impl Picked {
    fn new(path: &Path, file: &Schema, target: &Target, wanted: Option<&[String]>) -> Result<Self, Error> {
        let names: Vec<String> = file.fields().iter().map(|field| field.name().clone()).collect();
        let table = match target {
            Target::Existing(info) => info.columns.as_ref(),
            // A new table has the file's columns.
            Target::New => file,
        };
        let matched = columns::match_by_name(path, &names, table, wanted)?;
        let picked = matched.iter().enumerate().filter_map(|(at, position)| position.map(|position| (at, position)));
        let (positions, fields): (Vec<_>, Vec<_>) =
            picked.map(|(at, position)| (at, file.field(at).clone().with_name(table.field(position).name()))).unzip();
        Ok(Picked { positions, schema: Arc::new(Schema::new(fields)) })
    }
}

/// How much progress a batch is.
enum Weight {
    OfRow(f64),
    OfMemory,
}

fn reader_of(
    path: &Path,
    picked: Picked,
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>> + Send + 'static,
    weight: Weight,
    total_bytes: u64,
) -> Reader {
    let (path, schema) = (PathBuf::from(path), picked.schema.clone());
    let batches = batches.map(move |batch| {
        let batch = batch.map_err(|error| unreadable(&path, &error))?;
        let bytes = match weight {
            Weight::OfRow(bytes) => (batch.num_rows() as f64 * bytes) as u64,
            Weight::OfMemory => batch.get_array_memory_size() as u64,
        };
        let columns = batch.columns().to_vec();
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|error| unreadable(&path, &error))?;
        Ok(Read { batch, bytes })
    });
    Reader { schema: picked.schema, total_bytes, batches: Box::new(batches) }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, AsArray, Int64Array, StringArray},
        datatypes::{DataType, Field, Int64Type},
        ipc::writer::{FileWriter, StreamWriter},
    };
    use drsdb_client::TableInfo;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn batch() -> RecordBatch {
        let id: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50_000));
        let name: ArrayRef = Arc::new(StringArray::from_iter_values((0..50_000).map(|id| format!("n{id}"))));
        RecordBatch::try_from_iter([("NAME", name), ("id", id)]).unwrap()
    }

    fn table() -> Target {
        let columns = ["id", "name", "note"].map(|name| Field::new(name, DataType::Utf8, true)).to_vec();
        Target::Existing(TableInfo {
            schema: "public".into(),
            name: "t".into(),
            kind: "TABLE".into(),
            columns: Arc::new(Schema::new(columns)),
        })
    }

    #[test]
    fn every_format_gives_the_same_rows_under_the_tables_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let create = |name: &str| File::create(path(name)).unwrap();
        let batch = batch();
        let mut writer = ArrowWriter::try_new(create("f.parquet"), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let mut writer = FileWriter::try_new(create("f.arrow"), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        let mut writer = StreamWriter::try_new(create("f.arrows"), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();

        for name in ["f.parquet", "f.arrow", "f.arrows"] {
            let file = File::open(path(name)).unwrap();
            let open = if name == "f.parquet" { open_parquet } else { open_arrow };
            let reader = open(&path(name), file.try_clone().unwrap(), &table(), None).unwrap();
            let names: Vec<&str> = reader.schema.fields().iter().map(|field| field.name().as_str()).collect();
            assert_eq!(names, ["name", "id"], "{name}");
            let ids: Vec<i64> = reader
                .batches
                .flat_map(|read| read.unwrap().batch.column(1).as_primitive::<Int64Type>().values().to_vec())
                .collect();
            assert_eq!(ids, (0..50_000).collect::<Vec<_>>(), "{name}");

            let wanted = ["id".to_owned()];
            let mut reader = open(&path(name), File::open(path(name)).unwrap(), &table(), Some(&wanted)).unwrap();
            assert_eq!(reader.batches.next().unwrap().unwrap().batch.num_columns(), 1, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_something_else_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.parquet");
        std::fs::write(&path, "id,name\n1,a\n").unwrap();
        for open in [open_parquet, open_arrow] {
            let Err(error) = open(&path, File::open(&path).unwrap(), &table(), None) else { panic!("it was read") };
            assert!(error.message().contains("f.parquet"), "{error}");
        }
    }
}
