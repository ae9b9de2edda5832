//! `now()`, `current_timestamp` and `current_time` in microseconds, which is what TIMESTAMP and TIME columns keep:
//! DataFusion's have nanoseconds, and would be refused as values that lose a part.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, TimeUnit};
use datafusion::{
    common::Result as DfResult,
    config::ConfigOptions,
    execution::FunctionRegistry,
    logical_expr::{
        ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
        simplify::{ExprSimplifyResult, SimplifyContext},
    },
};

/// Puts them in the place of DataFusion's, which `registry` has.
pub fn register_now_functions(registry: &mut dyn FunctionRegistry) -> DfResult<()> {
    for name in ["now", "current_time"] {
        let nanoseconds = registry.udf(name)?;
        registry.register_udf(Arc::new(Microseconds { nanoseconds: (*nanoseconds).clone() }.into()))?;
    }
    Ok(())
}

/// A function that the planner puts its value in the place of.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Microseconds {
    nanoseconds: ScalarUDF,
}

fn in_microseconds(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        _ => DataType::Time64(TimeUnit::Microsecond),
    }
}

impl ScalarUDFImpl for Microseconds {
    fn name(&self) -> &str {
        self.nanoseconds.name()
    }

    fn aliases(&self) -> &[String] {
        self.nanoseconds.aliases()
    }

    fn signature(&self) -> &Signature {
        self.nanoseconds.signature()
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let nanoseconds = self.nanoseconds.inner().with_updated_config(config)?;
        Some(Self { nanoseconds }.into())
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        self.nanoseconds.return_type(arguments).map(|data_type| in_microseconds(&data_type))
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> DfResult<FieldRef> {
        let field = self.nanoseconds.return_field_from_args(arguments)?;
        let data_type = in_microseconds(field.data_type());
        Ok(Arc::new(field.as_ref().clone().with_data_type(data_type)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        self.nanoseconds.inner().invoke_with_args(arguments)
    }

    fn simplify(&self, arguments: Vec<Expr>, info: &SimplifyContext) -> DfResult<ExprSimplifyResult> {
        Ok(match self.nanoseconds.simplify(arguments, info)? {
            ExprSimplifyResult::Simplified(Expr::Literal(value, metadata)) => {
                let value = value.cast_to(&in_microseconds(&value.data_type()))?;
                ExprSimplifyResult::Simplified(Expr::Literal(value, metadata))
            }
            other => other,
        })
    }
}
