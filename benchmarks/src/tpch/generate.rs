//! A table's rows as Arrow batches, made while they are read.

use std::sync::Arc;

use arrow::{
    array::RecordBatchReader,
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    record_batch::RecordBatch,
};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow, SupplierArrow,
};

use super::Table;

/// Part `part` (from 1) of `parts` of the table's rows at `scale`, in batches of `batch_rows`. Text is plain Utf8, as
/// everywhere at drsdb's edge. The same arguments give the same rows.
pub fn batches(
    table: Table,
    scale: f64,
    part: i32,
    parts: i32,
    batch_rows: usize,
) -> impl RecordBatchReader + Send + 'static {
    let inner: Box<dyn RecordBatchReader + Send> = match table {
        Table::Region => {
            Box::new(RegionArrow::new(RegionGenerator::new(scale, part, parts)).with_batch_size(batch_rows))
        }
        Table::Nation => {
            Box::new(NationArrow::new(NationGenerator::new(scale, part, parts)).with_batch_size(batch_rows))
        }
        Table::Supplier => {
            Box::new(SupplierArrow::new(SupplierGenerator::new(scale, part, parts)).with_batch_size(batch_rows))
        }
        Table::Part => Box::new(PartArrow::new(PartGenerator::new(scale, part, parts)).with_batch_size(batch_rows)),
        Table::PartSupp => {
            Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale, part, parts)).with_batch_size(batch_rows))
        }
        Table::Customer => {
            Box::new(CustomerArrow::new(CustomerGenerator::new(scale, part, parts)).with_batch_size(batch_rows))
        }
        Table::Orders => Box::new(OrderArrow::new(OrderGenerator::new(scale, part, parts)).with_batch_size(batch_rows)),
        Table::LineItem => {
            Box::new(LineItemArrow::new(LineItemGenerator::new(scale, part, parts)).with_batch_size(batch_rows))
        }
    };
    PlainText { schema: plain_text_schema(&inner.schema()), inner }
}

/// Turns the generator's views into plain text.
struct PlainText {
    schema: SchemaRef,
    inner: Box<dyn RecordBatchReader + Send>,
}

fn plain_text_schema(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8View => Field::new(field.name(), DataType::Utf8, field.is_nullable()),
        _ => field.as_ref().clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

impl Iterator for PlainText {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.inner.next()?;
        Some(batch.and_then(|batch| {
            let columns = batch.columns().iter().zip(self.schema.fields());
            let columns = columns.map(|(column, field)| cast(column, field.data_type())).collect::<Result<_, _>>()?;
            RecordBatch::try_new(Arc::clone(&self.schema), columns)
        }))
    }
}

impl RecordBatchReader for PlainText {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpch::TABLES;

    const SCALE: f64 = 0.001;

    fn rows(table: Table, parts: i32) -> usize {
        (1..=parts)
            .flat_map(|part| batches(table, SCALE, part, parts, 100))
            .map(|batch| batch.unwrap().num_rows())
            .sum()
    }

    #[test]
    fn every_table_has_the_rows_of_its_scale() {
        for table in TABLES {
            let (rows, expected) = (rows(table, 1), table.rows(SCALE) as usize);
            match table {
                Table::LineItem => assert!(rows.abs_diff(expected) < expected / 20, "{rows} lineitem rows"),
                _ => assert_eq!(rows, expected, "{table}"),
            }
        }
    }

    #[test]
    fn parts_together_are_the_whole_table() {
        for table in [Table::Supplier, Table::PartSupp, Table::Orders, Table::LineItem] {
            assert_eq!(rows(table, 3), rows(table, 1), "{table}");
        }
    }

    #[test]
    fn batches_are_no_larger_than_asked_and_carry_the_schema() {
        let mut reader = batches(Table::Orders, SCALE, 1, 1, 64);
        let schema = reader.schema();
        assert!(schema.fields().iter().all(|field| field.data_type() != &DataType::Utf8View));
        let batch = reader.next().unwrap().unwrap();
        assert_eq!((batch.num_rows(), batch.schema()), (64, schema));
    }
}
