//! The wire form of drsdb's own nodes: a leaf is a [`ShardScanExec`], and is `ShardScan` of `scan.proto`; what has an input is
//! a [`PassExec`], and is one byte.

use std::sync::Arc;

use datafusion::{
    common::{Result as DfResult, Statistics, internal_err, stats::Precision},
    execution::TaskContext,
    physical_expr::PhysicalExpr,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::{
    physical_plan::{PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension},
    protobuf::PhysicalExprNode,
};
use drsdb_proto::{ErrorCode, v1};
use prost::Message;
use url::Url;

use super::{OwnWrites, ScanServer, ShardScanExec};
use crate::{Error, Table, table::parse_ulid, wanted::PassExec};

/// Encodes and decodes drsdb's nodes inside a plan.
#[derive(Debug, Default, Clone, Copy)]
pub struct ShardScanCodec;

impl PhysicalExtensionCodec for ShardScanCodec {
    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> DfResult<()> {
        if let Some(pass) = node.downcast_ref::<PassExec>() {
            buf.extend(pass.to_bytes());
            return Ok(());
        }
        let Some(scan) = node.downcast_ref::<ShardScanExec>() else {
            return internal_err!("{} has no wire form", node.name());
        };
        let filters = scan.filters.iter().map(|filter| {
            let node = converter.physical_expr_to_proto(filter, self)?;
            Ok(node.encode_to_vec().into())
        });
        let proto = v1::ShardScan {
            table: Some(scan.table.to_proto()),
            snapshot: scan.snapshot,
            projection: scan.projection.iter().map(|&position| position as u32).collect(),
            filters: filters.collect::<DfResult<_>>()?,
            limit: scan.limit.map(|limit| limit as u64),
            servers: scan
                .servers
                .iter()
                .map(|server| v1::ScanServer {
                    id: server.id.to_string(),
                    url: server.url.to_string(),
                    shards: server.shards.clone(),
                    also: server.also.iter().map(|id| id.to_string()).collect(),
                })
                .collect(),
            transaction_id: scan.own.map(|own| own.transaction.to_string()).unwrap_or_default(),
            sequence: scan.own.map_or(0, |own| own.sequence),
            partitions: scan.partitions as u32,
            rows_estimate: scan.statistics.num_rows.get_value().copied().unwrap_or(0) as u64,
            bytes_estimate: scan.statistics.total_byte_size.get_value().copied().unwrap_or(0) as u64,
        };
        proto.encode(buf).map_err(|error| Error::internal(error.to_string()).into_datafusion())
    }

    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        if let [input] = inputs {
            return Ok(Arc::new(PassExec::from_bytes(buf, Arc::clone(input))?));
        }
        let broken = |what: &str| {
            Error::new(ErrorCode::InvalidArgument, format!("a scan in a plan is broken: {what}")).into_datafusion()
        };
        let proto = v1::ShardScan::decode(buf).map_err(|error| broken(&error.to_string()))?;
        let table = proto.table.as_ref().ok_or_else(|| broken("no table"))?;
        let table = Arc::new(Table::from_proto(table).map_err(Error::into_datafusion)?);
        let schema = table.arrow_schema();
        let projection: Vec<usize> = proto.projection.iter().map(|&position| position as usize).collect();
        if projection.iter().any(|&position| position >= table.columns.len()) || proto.partitions == 0 {
            return Err(broken("a column or partition count out of range"));
        }
        let decode_context = PhysicalPlanDecodeContext::new(context, self);
        let filters = proto.filters.iter().map(|bytes| {
            let node = PhysicalExprNode::decode(bytes.as_ref()).map_err(|error| broken(&error.to_string()))?;
            converter.proto_to_physical_expr(&node, &schema, &decode_context)
        });
        let filters = filters.collect::<DfResult<Vec<Arc<dyn PhysicalExpr>>>>()?;
        let servers = proto.servers.iter().map(|server| {
            Ok(ScanServer {
                id: parse_ulid(&server.id).map_err(Error::into_datafusion)?,
                url: Url::parse(&server.url).map_err(|error| broken(&error.to_string()))?,
                shards: server.shards.clone(),
                also: server
                    .also
                    .iter()
                    .map(|id| parse_ulid(id))
                    .collect::<crate::Result<_>>()
                    .map_err(Error::into_datafusion)?,
            })
        });
        let own = match proto.transaction_id.as_str() {
            "" => None,
            id => Some(OwnWrites {
                transaction: parse_ulid(id).map_err(Error::into_datafusion)?,
                sequence: proto.sequence,
            }),
        };
        let mut statistics = Statistics::new_unknown(&schema.project(&projection)?);
        statistics.num_rows = Precision::Inexact(proto.rows_estimate as usize);
        statistics.total_byte_size = Precision::Inexact(proto.bytes_estimate as usize);
        let scan = ShardScanExec::new(
            table,
            proto.snapshot,
            projection,
            servers.collect::<DfResult<_>>()?,
            proto.partitions as usize,
            statistics,
        )?;
        let limit = proto.limit.map(|limit| limit as usize);
        Ok(Arc::new(scan.with_filters(filters).with_limit(limit).with_own_writes(own)))
    }
}
