//! JSON, one object a line. JSON has no numbers for NaN and the infinities: they are the texts `"NaN"`, `"Infinity"` and
//! `"-Infinity"`, so that they can be told from NULL.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, FieldRef, Float32Type, Float64Type},
    error::ArrowError,
    json::{
        WriterBuilder,
        writer::{Encoder, EncoderFactory, EncoderOptions, LineDelimited, NullableEncoder, make_encoder},
    },
};

/// The rows of a batch as lines.
pub fn lines_of(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let builder = WriterBuilder::new().with_explicit_nulls(true).with_encoder_factory(Arc::new(Floats));
    let mut lines = builder.build::<_, LineDelimited>(Vec::new());
    lines.write(batch)?;
    lines.finish()?;
    Ok(lines.into_inner())
}

static PLAIN: LazyLock<EncoderOptions> = LazyLock::new(EncoderOptions::default);

/// Takes over the arrays that have what JSON's numbers have not.
#[derive(Debug)]
struct Floats;

impl EncoderFactory for Floats {
    fn make_default_encoder<'a>(
        &self,
        field: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        if (0..array.len()).all(|row| float(array, row).is_none_or(f64::is_finite)) {
            return Ok(None);
        }
        let plain = make_encoder(field, array, &PLAIN)?;
        Ok(Some(NullableEncoder::new(Box::new(WithTexts { array, plain }), array.nulls().cloned())))
    }
}

struct WithTexts<'a> {
    array: &'a dyn Array,
    plain: NullableEncoder<'a>,
}

impl Encoder for WithTexts<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        match float(self.array, row) {
            Some(value) if value.is_nan() => out.extend_from_slice(b"\"NaN\""),
            Some(f64::INFINITY) => out.extend_from_slice(b"\"Infinity\""),
            Some(f64::NEG_INFINITY) => out.extend_from_slice(b"\"-Infinity\""),
            _ => self.plain.encode(row, out),
        }
    }
}

fn float(array: &dyn Array, row: usize) -> Option<f64> {
    match array.data_type() {
        DataType::Float64 => Some(array.as_primitive::<Float64Type>().value(row)),
        DataType::Float32 => Some(array.as_primitive::<Float32Type>().value(row).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float32Array, Float64Array, Int64Array};

    use super::*;

    #[test]
    fn what_is_no_json_number_is_text() {
        let values = vec![Some(1.5), Some(f64::NAN), Some(f64::INFINITY), Some(f64::NEG_INFINITY), None];
        let small: Vec<Option<f32>> = values.iter().map(|value| value.map(|value: f64| value as f32)).collect();
        let columns: [(&str, ArrayRef); 3] = [
            ("n", Arc::new(Int64Array::from_iter_values(0..5))),
            ("d", Arc::new(Float64Array::from(values))),
            ("r", Arc::new(Float32Array::from(small))),
        ];
        let text = String::from_utf8(lines_of(&RecordBatch::try_from_iter(columns).unwrap()).unwrap()).unwrap();
        let expected = "\
{\"n\":0,\"d\":1.5,\"r\":1.5}
{\"n\":1,\"d\":\"NaN\",\"r\":\"NaN\"}
{\"n\":2,\"d\":\"Infinity\",\"r\":\"Infinity\"}
{\"n\":3,\"d\":\"-Infinity\",\"r\":\"-Infinity\"}
{\"n\":4,\"d\":null,\"r\":null}
";
        assert_eq!(text, expected);
    }
}
