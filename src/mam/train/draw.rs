//! Draws from the net in training: sessions that take its weights as inputs, so that one loaded
//! graph serves all steps.

use crate::cancel::Cancel;
use crate::error::{Result, bail};
use crate::mam::contract::{Contract, INPUT, LOG_P, LOGITS};
use crate::mam::networks;
use crate::mam::sample::{SampleOptions, draw_value};
use crate::onnx::{Graph, Value};
use crate::random::Stream;
use crate::runtime::{Session, SessionOptions};
use crate::tensor::Tensor;
use crate::train::Parameters;

/// Rows that go through a net together, whatever the number of threads.
const GROUP: usize = 64;

/// A net whose weights change, in one session per thread.
#[derive(Debug)]
pub struct Live {
    sessions: Vec<Session>,
    weights: Vec<String>,
    contract: Contract,
}

/// A row in the making.
#[derive(Debug)]
pub struct Draft {
    /// Values, −1 where still missing.
    pub row: Vec<i32>,
    /// The sites to fill, in this order.
    pub order: Vec<u32>,
    /// log of the probability with which they were filled.
    pub log_q: f64,
    /// Where the random numbers come from.
    pub random: Stream,
}

impl Live {
    pub fn new(net: &Graph, contract: &Contract, threads: usize) -> Result<Live> {
        let weights = networks::trained(net);
        let mut graph = net.clone();
        for name in &weights {
            let tensor = graph.initializers.remove(name).expect("trained tensors are there");
            graph.inputs.push(Value::fixed(name, tensor.element_type(), tensor.shape()));
        }
        let program = crate::runtime::Program::of_graph(&graph)?;
        let load = |_| Session::new(&program, &SessionOptions::default());
        let sessions = (0..threads.max(1)).map(load).collect::<Result<_>>()?;
        Ok(Live { sessions, weights, contract: contract.clone() })
    }

    /// Fills the missing sites of all drafts, x_σ(d) ~ p_φ(· | what is there).
    pub fn fill(
        &mut self,
        parameters: &Parameters,
        drafts: &mut [Draft],
        cancel: &Cancel,
    ) -> Result<()> {
        self.spread(drafts, |live, session, drafts| {
            live.fill_group(session, parameters, drafts, cancel)
        })
    }

    /// f_θ of complete rows.
    pub fn marginals(
        &mut self,
        parameters: &Parameters,
        rows: &[Vec<i32>],
        cancel: &Cancel,
    ) -> Result<Vec<f64>> {
        let mut items: Vec<(&[i32], f64)> = rows.iter().map(|r| (r.as_slice(), 0.0)).collect();
        self.spread(&mut items, |live, session, items| {
            let x = live.tensor(items.iter().map(|(row, _)| *row));
            let outputs = session.run(live.inputs(&x, parameters), cancel)?;
            let values = outputs.f32(LOG_P)?.1;
            items.iter_mut().zip(values).for_each(|((_, f), &v)| *f = f64::from(v));
            Ok(())
        })?;
        Ok(items.into_iter().map(|(_, f)| f).collect())
    }

    /// `each` on groups of items, one session per thread.
    fn spread<T: Send>(
        &mut self,
        items: &mut [T],
        each: impl Fn(&Live, &mut Session, &mut [T]) -> Result<()> + Sync,
    ) -> Result<()> {
        let mut sessions = std::mem::take(&mut self.sessions);
        let live = &*self;
        let threads = sessions.len();
        let mut groups: Vec<Vec<&mut [T]>> = (0..threads).map(|_| Vec::new()).collect();
        items.chunks_mut(GROUP).enumerate().for_each(|(i, group)| groups[i % threads].push(group));
        let work = |session: &mut Session, groups: Vec<&mut [T]>| -> Result<()> {
            groups.into_iter().try_for_each(|group| each(live, session, group))
        };
        let result = std::thread::scope(|scope| {
            let start = |(session, groups)| scope.spawn(|| work(session, groups));
            let threads: Vec<_> = sessions.iter_mut().zip(groups).map(start).collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        });
        self.sessions = sessions;
        result
    }

    fn fill_group(
        &self,
        session: &mut Session,
        parameters: &Parameters,
        drafts: &mut [Draft],
        cancel: &Cancel,
    ) -> Result<()> {
        let (c, plain) = (&self.contract, SampleOptions::default());
        let steps = drafts.iter().map(|d| d.order.len()).max().unwrap_or(0);
        for step in 0..steps {
            let x = self.tensor(drafts.iter().map(|d| d.row.as_slice()));
            let outputs = session.run(self.inputs(&x, parameters), cancel)?;
            let logits = outputs.f32(LOGITS)?.1;
            for (i, draft) in drafts.iter_mut().enumerate().filter(|(_, d)| step < d.order.len()) {
                let site = draft.order[step] as usize;
                let logits = &logits[(i * c.length + site) * c.vocab..][..c.cardinalities[site]];
                let Some((value, log, _)) = draw_value(logits, draft.random.uniform(), &plain)
                else {
                    bail!(Numerics, "the conditionals are not finite; lower the learning rate");
                };
                draft.row[site] = value as i32;
                draft.log_q += log;
            }
        }
        Ok(())
    }

    fn tensor<'a>(&self, rows: impl Iterator<Item = &'a [i32]>) -> Tensor {
        let cells: Vec<i64> = rows.flatten().map(|&v| cell(v, &self.contract)).collect();
        Tensor::i64([cells.len() / self.contract.length, self.contract.length], cells)
    }

    fn inputs<'a>(
        &'a self,
        x: &'a Tensor,
        parameters: &'a Parameters,
    ) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        let ours = |(name, _): &(&str, &Tensor)| self.weights.iter().any(|w| w == name);
        std::iter::once((INPUT, x)).chain(parameters.tensors().filter(ours))
    }
}

/// A value as the net takes it.
pub fn cell(value: i32, c: &Contract) -> i64 {
    if value < 0 { c.mask_id } else { i64::from(value) + c.value_offset }
}
