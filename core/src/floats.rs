//! One zero and one NaN: what REAL and DOUBLE are stored as.
//!
//! Arrow compares floats by their total order, in which -0.0 and 0.0 are two values, and so is each kind of NaN. To SQL they
//! are one. So what is written, and what is compared with it as a key, becomes 0.0, or the NaN that sorts after all others.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{DataType, Float32Type, Float64Type},
};
use datafusion::common::ScalarValue;

/// The positive quiet NaN without a payload; `f32::NAN` is not promised to be it.
const NAN_32: u32 = 0x7fc0_0000;
/// The same of a DOUBLE.
const NAN_64: u64 = 0x7ff8_0000_0000_0000;

/// A REAL as it is stored.
pub fn canonical_f32(value: f32) -> f32 {
    if value.is_nan() {
        f32::from_bits(NAN_32)
    } else if value == 0.0 {
        0.0
    } else {
        value
    }
}

/// A DOUBLE as it is stored.
pub fn canonical_f64(value: f64) -> f64 {
    if value.is_nan() {
        f64::from_bits(NAN_64)
    } else if value == 0.0 {
        0.0
    } else {
        value
    }
}

/// The column with floats as they are stored. It is copied only when that makes a difference.
pub fn canonical(column: ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float32 => {
            let floats = column.as_primitive::<Float32Type>();
            // Looking at all of them is faster than stopping at the first: it is done several at a time.
            let differs = |found: bool, value: &f32| found | (value.to_bits() != canonical_f32(*value).to_bits());
            if !floats.values().iter().fold(false, differs) {
                return column;
            }
            Arc::new(floats.unary::<_, Float32Type>(canonical_f32))
        }
        DataType::Float64 => {
            let floats = column.as_primitive::<Float64Type>();
            let differs = |found: bool, value: &f64| found | (value.to_bits() != canonical_f64(*value).to_bits());
            if !floats.values().iter().fold(false, differs) {
                return column;
            }
            Arc::new(floats.unary::<_, Float64Type>(canonical_f64))
        }
        _ => column,
    }
}

/// The same of one value.
pub fn canonical_scalar(value: ScalarValue) -> ScalarValue {
    match value {
        ScalarValue::Float32(Some(value)) => ScalarValue::Float32(Some(canonical_f32(value))),
        ScalarValue::Float64(Some(value)) => ScalarValue::Float64(Some(canonical_f64(value))),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Float64Array, Int32Array};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_and_nans_are_one_each() {
        let odd = f64::from_bits(0xfff0_0000_0000_0001);
        let column: ArrayRef =
            Arc::new(Float64Array::from(vec![Some(-0.0), None, Some(odd), Some(f64::NAN), Some(-1.5)]));
        let bits: Vec<_> =
            canonical(column).as_primitive::<Float64Type>().iter().map(|value| value.map(f64::to_bits)).collect();
        assert_eq!(bits, [Some(0), None, Some(NAN_64), Some(NAN_64), Some((-1.5f64).to_bits())]);
        let column: ArrayRef = Arc::new(Float32Array::from(vec![-0.0, -f32::NAN, f32::NEG_INFINITY]));
        let bits: Vec<_> =
            canonical(column).as_primitive::<Float32Type>().values().iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, [0, NAN_32, f32::NEG_INFINITY.to_bits()]);
    }

    #[test]
    fn what_is_right_is_not_copied() {
        let columns: [ArrayRef; 2] = [
            Arc::new(Float64Array::from(vec![Some(0.0), None, Some(f64::INFINITY)])),
            Arc::new(Int32Array::from(vec![0])),
        ];
        for column in columns {
            let same = canonical(Arc::clone(&column));
            assert_eq!(same.to_data().buffers()[0].as_ptr(), column.to_data().buffers()[0].as_ptr());
        }
    }

    proptest! {
        #[test]
        fn equal_floats_have_equal_bits(a: u64, b: u64) {
            for bits in [a, b, a ^ (1 << 63), NAN_64 | a, 1 << 63, 0] {
                for other in [a, b, NAN_64 | b, 0] {
                    let (one, two) = (f64::from_bits(bits), f64::from_bits(other));
                    let equal = one == two || one.is_nan() && two.is_nan();
                    prop_assert_eq!(canonical_f64(one).to_bits() == canonical_f64(two).to_bits(), equal);
                }
            }
        }
    }
}
