//! Tests of the records of an evaluation: the prompts that images of each task use, and the costs of networks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use cdl_core::{
    candle_core::{D, Tensor},
    error::Result,
    metrics::{PoolUsage, PromptUsageTable},
    testing::{Noise, TestBed},
    train::{Accuracies, Evaluator, InferenceMacs, Trainer, TrainingMacs},
    traits::{BlockLengths, Lengths, Mode, QuerySource, Role, TaskStream},
};

fn trainer(source: QuerySource, learner: (&str, &str), distiller: &str) -> Result<Trainer> {
    cdl_plugins::link();
    let bed = TestBed::new(1)?.with_mode(Mode::Published, source);
    let settings = toml::from_str(learner.1).expect("TOML");
    bed.trainer_of((learner.0, &settings), (distiller, &toml::from_str("").expect("TOML")))
}

/// Returns the prompt use of both networks after the last of three tasks of four test images.
fn prompt_use(learner: (&str, &str)) -> Result<(Trainer, [Vec<PoolUsage>; 2])> {
    let mut trainer = trainer(QuerySource::Student, learner, "kd")?;
    let stream = Noise::new(1);
    for task in stream.tasks() {
        trainer.begin_task(task)?;
        trainer.end_task(task)?;
    }
    let last = stream.tasks().last().expect("three tasks");
    let tested =
        Evaluator::default().test(&trainer, last, &stream, &mut Accuracies::default(), &mut || Ok(()))?;
    let of = |role| tested.prompt_use.of(role).clone().expect("tested");
    Ok((trainer, [of(Role::Teacher), of(Role::Student)]))
}

/// Returns the cosines of queries `(B, D)` with the keys of `pool` in the saved state.
fn cosines(trainer: &Trainer, role: Role, pool: &str, query: &Tensor) -> Result<Vec<Vec<f32>>> {
    let state = trainer.state(role)?;
    let keys = state.get(pool).expect("a pool has the name of its keys in saved models").clone();
    let l2_normalize =
        |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?) };
    Ok(l2_normalize(query)?.matmul(&l2_normalize(&keys)?.t()?)?.to_vec2()?)
}

#[test]
fn chosen_prompts_are_the_nearest_of_each_image() -> Result<()> {
    for (learner, pools, top) in [
        (("l2p", "pool = 7\ntop_k = 3\ndeep = true"), 5, 3),
        (("dual_prompt", "pool = 4\ne_length = 2\ng_length = 2"), 3, 1),
    ] {
        let (trainer, networks) = prompt_use(learner)?;
        for (role, found) in [Role::Teacher, Role::Student].into_iter().zip(&networks) {
            assert_eq!(found.len(), pools, "{learner:?}");
            for pool in found {
                assert_eq!(pool.images, [4, 4, 4]);
                let PromptUsageTable::Counts(counts) = &pool.table else { panic!("prompts are chosen") };
                for (task, counts) in counts.iter().enumerate() {
                    let pixels = Noise::new(1).batch(task, 10_000)?.pixels;
                    let plain = trainer.student.backbone.forward(
                        &pixels,
                        &Default::default(),
                        &Default::default(),
                    )?;
                    let mut expected = vec![0; counts.len()];
                    for row in cosines(&trainer, role, &pool.pool, &plain.cls)? {
                        for (number, cosine) in row.iter().enumerate() {
                            let nearer = row.iter().filter(|other| *other > cosine).count();
                            expected[number] += u64::from(nearer < top);
                        }
                    }
                    assert_eq!(*counts, expected, "{learner:?}, task {task}");
                    assert_eq!(counts.iter().sum::<u64>(), 4 * top as u64);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn weights_are_recorded_as_means_and_methods_without_a_pool_record_nothing() -> Result<()> {
    let (_, networks) = prompt_use(("coda_prompt", "pool = 6\nlength = 2"))?;
    for found in networks {
        assert_eq!(found.len(), 5);
        for pool in found {
            let PromptUsageTable::MeanWeights(rows) = &pool.table else { panic!("components are weighted") };
            assert!(rows.iter().all(|row| row.len() == 6 && row.iter().all(|weight| weight.abs() <= 1.0)));
            assert!(rows.iter().flatten().any(|weight| *weight != 0.0));
            assert_eq!(rows, &pool.rows());
        }
    }
    for learner in ["apt", "linear"] {
        assert_eq!(prompt_use((learner, ""))?.1, [Vec::new(), Vec::new()], "{learner}");
    }
    Ok(())
}

#[test]
fn the_cost_of_a_step_counts_each_pass_and_a_shared_query_once() -> Result<()> {
    let settings = ("l2p", "pool = 7\ntop_k = 3\nlength = 4");
    for (source, distiller) in
        [(QuerySource::Student, "kd"), (QuerySource::Own, "kd_prompts"), (QuerySource::Own, "none")]
    {
        let mut trainer = trainer(source, settings, distiller)?;
        trainer.begin_task(&Noise::new(1).tasks()[0])?;
        let [plain_teacher, plain_student] = [&trainer.teacher, &trainer.student]
            .map(|network| network.backbone.macs(&Lengths::default()).forward);
        // Three prompts of two keys and two values.
        let block = BlockLengths { rows: 6, cls_add: false, trained: true };
        let lengths = Lengths { blocks: vec![block], ..Lengths::default() };
        let teacher = trainer.teacher.backbone.macs(&lengths);
        // The student also has the distiller's token and rows.
        let mut more = trainer.distiller.inject(cdl_core::traits::Pass::Train)?.lengths()?;
        assert_eq!(
            (more.tokens, more.trained_tokens),
            if distiller == "kd_prompts" { (1, true) } else { (0, false) }
        );
        if more.blocks.is_empty() {
            more.blocks.push(BlockLengths::default());
        }
        more.blocks[0].rows += 6;
        more.blocks[0].trained = true;
        let student = trainer.student.backbone.macs(&more);

        let own = source == QuerySource::Own;
        let of_query = if own { plain_teacher } else { plain_student };
        let found = trainer.cost(Role::Teacher)?;
        let total = of_query + teacher.forward + teacher.backward;
        let training = TrainingMacs {
            query: of_query,
            teacher: 0,
            forward: teacher.forward,
            backward: teacher.backward,
            total,
        };
        assert_eq!(found.training_macs, training, "{distiller}");
        let (query, forward) = (of_query, teacher.forward);
        assert_eq!(found.inference_macs, InferenceMacs { query, forward, total: query + forward });

        let has_teacher = distiller != "none";
        let query = plain_student + if own && has_teacher { plain_teacher } else { 0 };
        let by_teacher = if has_teacher { teacher.forward } else { 0 };
        let found = trainer.cost(Role::Student)?;
        let total = query + by_teacher + student.forward + student.backward;
        let training = TrainingMacs {
            query,
            teacher: by_teacher,
            forward: student.forward,
            backward: student.backward,
            total,
        };
        assert_eq!(found.training_macs, training, "{distiller}");
        let vars = trainer.trainable(Role::Student);
        let parameters: usize = vars.iter().map(|var| var.tensor().elem_count()).sum();
        assert_eq!(found.trainable_parameters, parameters as u64);
        let total = plain_student + student.forward;
        let expected = InferenceMacs { query: plain_student, forward: student.forward, total };
        assert_eq!(found.inference_macs, expected);
    }
    // Without prompts there is no query, and no gradient passes through frozen layers.
    let mut trainer = trainer(QuerySource::Student, ("linear", ""), "none")?;
    trainer.begin_task(&Noise::new(1).tasks()[0])?;
    let found = trainer.cost(Role::Student)?;
    assert_eq!(
        (found.training_macs.query, found.training_macs.backward, found.inference_macs.query),
        (0, 0, 0)
    );
    assert_eq!(found.training_macs.total, found.inference_macs.total);
    Ok(())
}

/// Recording is best effort: NaN weights are left out of the record and do not stop the run.
#[test]
fn invalid_records_are_left_out() -> Result<()> {
    let mut trainer = trainer(QuerySource::Student, ("coda_prompt", "pool = 6\nlength = 2"), "kd")?;
    let stream = Noise::new(1);
    let first = &stream.tasks()[0];
    trainer.begin_task(first)?;
    let keys = trainer.trainable(Role::Student).into_iter().find(|var| var.name.contains("e_k_0"));
    let keys = keys.expect("keys of the first pool");
    keys.var.set(&(keys.tensor().detach() * f64::NAN)?)?;
    let mut accuracies = Accuracies::default();
    let tested = Evaluator::default().test(&trainer, first, &stream, &mut accuracies, &mut || Ok(()))?;
    assert!(tested.prompt_use.of(Role::Student).is_none());
    assert!(tested.prompt_use.of(Role::Teacher).is_some());
    assert_eq!(accuracies.student.rows().len(), 1);
    Ok(())
}
