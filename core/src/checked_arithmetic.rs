//! Integer arithmetic that fails on overflow, as SQL says.
//!
//! DataFusion's `+`, `-` and `*` on integers wrap around silently, and its switch for that does not travel with a plan. So
//! the index server rewrites them, before it optimizes, into the functions here, which every server has. Decimals are
//! checked by Arrow already; floats have infinities.

use std::sync::Arc;

use arrow::{
    compute::kernels::numeric::{add, mul, sub},
    datatypes::DataType,
};
use datafusion::{
    common::{DFSchema, Result as DfResult, ScalarValue, exec_err, tree_node::Transformed},
    config::ConfigOptions,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        AggregateUDF, BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF,
        ScalarUDFImpl, Signature, Volatility, expr::ScalarFunction, expr_rewriter::FunctionRewrite,
        type_coercion::binary::BinaryTypeCoercer,
    },
    physical_expr_common::datum::apply,
};

use drsdb_proto::{ErrorCode, WireError};

use crate::{
    Error, bounded_functions::register_bounded_functions, checked_sum::CheckedSum, id_functions::register_id_functions,
    interval_order::IntervalNanos, now_functions::register_now_functions, single_value::register_single_value,
    window_functions::register_window_functions,
};

/// One of the checked operators, as a function of two or more integers: `a - b - c` is one call, and not two. What later
/// passes do for each level of a tree, such as naming and typing all that is below, would else take minutes for a few hundred
/// terms.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    name: &'static str,
    operator: Operator,
    signature: Signature,
}

impl Checked {
    fn new(name: &'static str, operator: Operator) -> Self {
        Self { name, operator, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn too_few<T>(&self) -> DfResult<T> {
        exec_err!("{} takes two arguments or more", self.name)
    }
}

fn all() -> [Checked; 3] {
    [
        Checked::new("checked_add", Operator::Plus),
        Checked::new("checked_subtract", Operator::Minus),
        Checked::new("checked_multiply", Operator::Multiply),
    ]
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> DfResult<DataType> {
        let [first, others @ ..] = arguments else { return self.too_few() };
        others.iter().try_fold(first.clone(), |left, right| {
            BinaryTypeCoercer::new(&left, &self.operator, right).get_result_type()
        })
    }

    fn coerce_types(&self, arguments: &[DataType]) -> DfResult<Vec<DataType>> {
        match arguments {
            [left, right] => {
                let (left, right) = BinaryTypeCoercer::new(left, &self.operator, right).get_input_types()?;
                Ok(vec![left, right])
            }
            // They have one type nearly always, see [`CheckIntegers`], and else each step looks to it.
            [_, _, _, ..] => Ok(arguments.to_vec()),
            _ => self.too_few(),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let [first, others @ ..] = arguments.args.as_slice() else { return self.too_few() };
        others.iter().try_fold(first.clone(), |left, right| {
            let (left_type, right_type) = (left.data_type(), right.data_type());
            // CASE and set operations have their types only after the rewrite has looked at them.
            let (left, right) = if left_type == right_type {
                (left, right.clone())
            } else {
                let coercer = BinaryTypeCoercer::new(&left_type, &self.operator, &right_type);
                let (of_left, of_right) = coercer.get_input_types()?;
                (left.cast_to(&of_left, None)?, right.cast_to(&of_right, None)?)
            };
            match self.operator {
                Operator::Plus => apply(&left, &right, add),
                Operator::Minus => apply(&left, &right, sub),
                _ => apply(&left, &right, mul),
            }
        })
    }
}

/// Registers the functions, [`CheckedSum`], those over windows, those that tell the time and those that make ids, so that SQL and plans that name them
/// find them.
pub fn register_functions(state: &mut SessionState) -> DfResult<()> {
    for function in all() {
        state.register_udf(Arc::new(ScalarUDF::from(function)))?;
    }
    state.register_udaf(Arc::new(AggregateUDF::from(CheckedSum::default())))?;
    state.register_udf(Arc::new(ScalarUDF::from(IntervalNanos::default())))?;
    register_single_value(state)?;
    register_window_functions(state)?;
    register_bounded_functions(state)?;
    register_now_functions(state)?;
    register_id_functions(state)
}

/// Calls in each other, at most: planning takes the time of the third power.
const MAX_HEIGHT: usize = 100;

/// Rewrites integer `+`, `-` and `*` into the functions.
#[derive(Debug)]
pub struct CheckIntegers {
    functions: Vec<(Operator, Arc<ScalarUDF>)>,
}

impl Default for CheckIntegers {
    fn default() -> Self {
        let functions = all().into_iter().map(|checked| (checked.operator, Arc::new(ScalarUDF::from(checked))));
        Self { functions: functions.collect() }
    }
}

impl FunctionRewrite for CheckIntegers {
    fn name(&self) -> &str {
        "check_integers"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> DfResult<Transformed<Expr>> {
        // The smallest integer has no opposite: 0 - x says so. A literal's sign is part of it, and is folded before.
        if let Expr::Negative(inner) = &expr
            && let data_type = inner.get_type(schema)?
            && data_type.is_integer()
        {
            let zero = Expr::Literal(ScalarValue::new_zero(&data_type)?, None);
            return Ok(Transformed::yes(self.call(Operator::Minus, zero, inner.as_ref().clone())));
        }
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = &expr else { return Ok(Transformed::no(expr)) };
        if !self.functions.iter().any(|(operator, _)| operator == op) {
            return Ok(Transformed::no(expr));
        }
        let (left_type, right_type) = (left.get_type(schema)?, right.get_type(schema)?);
        if !left_type.is_integer() || !right_type.is_integer() {
            return Ok(Transformed::no(expr));
        }
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = expr else { return Ok(Transformed::no(expr)) };
        // Of one type, so that it overflows where it did.
        if left_type == right_type
            && let Expr::ScalarFunction(call) = left.as_ref()
            && call.func.name() == self.function(op).name()
            && call.args.iter().all(|argument| argument.get_type(schema).is_ok_and(|of| of == right_type))
        {
            let Expr::ScalarFunction(mut call) = *left else { unreachable!("it is a call") };
            call.args.push(*right);
            return Ok(Transformed::yes(Expr::ScalarFunction(call)));
        }
        if self.height(&left) >= MAX_HEIGHT {
            let message = format!("more than {MAX_HEIGHT} integer +, - and * alternate in one expression");
            let error = WireError::new(ErrorCode::ResourceExhausted, message);
            let hint = "group them with parentheses: sums of sums, and what is subtracted in one";
            return Err(Error::from(error.with_hint(hint)).into_datafusion());
        }
        Ok(Transformed::yes(self.call(op, *left, *right)))
    }
}

impl CheckIntegers {
    /// `left` operator `right`, checked.
    ///
    /// # Panics
    /// For an operator that none of the functions stands for.
    fn call(&self, operator: Operator, left: Expr, right: Expr) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(self.function(operator)), vec![left, right]))
    }

    /// How many calls are in each other, on the left.
    fn height(&self, expr: &Expr) -> usize {
        let mut height = 0;
        let mut inner = expr;
        while let Expr::ScalarFunction(call) = inner
            && self.functions.iter().any(|(_, function)| function.name() == call.func.name())
            && let Some(left) = call.args.first()
        {
            height += 1;
            inner = left;
        }
        height
    }

    fn function(&self, operator: Operator) -> &Arc<ScalarUDF> {
        let function = self.functions.iter().find(|(known, _)| *known == operator);
        &function.expect("callers pass +, - and * only").1
    }
}
