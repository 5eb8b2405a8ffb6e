//! Procedural grey images: random silhouettes on black, as varied in outline, layout and surface as 28 x 28 pixels can
//! show.
//!
//! An image is a stack of *parts*. A part is an outline (radial curve or polygon, superellipse, or a profile swept along
//! an axis) placed in the plane, possibly mirrored, hollow, or used to cut away what lies beneath, and painted with
//! shading, stripes and texture. Every image has a random stream of its own, so that image `i` of a seed is the same
//! however many are drawn and in whatever order.

use std::f32::consts::{PI, TAU};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Height and width of an image.
pub const SIDE: usize = 28;

/// Every pixel is the mean of `OVERSAMPLING x OVERSAMPLING` samples.
const OVERSAMPLING: usize = 3;

/// Images with a smaller share of the plane inside their outline are drawn again.
const LEAST_COVERAGE: f32 = 0.04;

/// `count` images of `SIDE * SIDE` bytes, one after the other.
pub fn images(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * SIDE * SIDE];
    bytes.par_chunks_exact_mut(SIDE * SIDE).enumerate().for_each(|(index, image)| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index as u64);
        draw(&mut rng, image);
    });
    bytes
}

fn draw(rng: &mut ChaCha8Rng, image: &mut [u8]) {
    let (scene, frame) = loop {
        let scene = Scene::random(rng);
        if let Some(bounds) = scene.bounds() {
            break (scene, Frame::random(rng, bounds));
        }
    };
    let gain = rng.random_range(0.5..1.2);
    let gamma = rng.random_range(0.6..1.4);
    for (row, line) in image.chunks_exact_mut(SIDE).enumerate() {
        for (column, pixel) in line.iter_mut().enumerate() {
            let mut total = 0.0;
            for sample in 0..OVERSAMPLING * OVERSAMPLING {
                let (dx, dy) = (sample % OVERSAMPLING, sample / OVERSAMPLING);
                total += scene
                    .grey(frame.point((column * OVERSAMPLING + dx) as f32, (row * OVERSAMPLING + dy) as f32));
            }
            let mean = total / (OVERSAMPLING * OVERSAMPLING) as f32;
            *pixel = (255.0 * (gain * mean.powf(gamma)).min(1.0)).round() as u8;
        }
    }
}

type Point = [f32; 2];

/// The window of the plane that an image shows.
struct Frame {
    corner: Point,
    /// Distance between two samples.
    step: f32,
}

impl Frame {
    /// Mostly a window that the bounds of the scene just fill, now and then a wider one that is off centre.
    fn random(rng: &mut ChaCha8Rng, [low, high]: [Point; 2]) -> Self {
        let longest = (high[0] - low[0]).max(high[1] - low[1]);
        let (margin, drift) =
            if rng.random_bool(0.75) { (1.0, 0.0) } else { (rng.random_range(1.0..1.6), 0.5) };
        let size = longest * margin;
        let slack = (size - longest) * drift;
        let mut corner = |axis: usize| {
            let centre = (low[axis] + high[axis]) / 2.0 + slack * rng.random_range(-1.0..1.0);
            centre - size / 2.0
        };
        Self { corner: [corner(0), corner(1)], step: size / (SIDE * OVERSAMPLING) as f32 }
    }

    fn point(&self, column: f32, row: f32) -> Point {
        [self.corner[0] + (column + 0.5) * self.step, self.corner[1] + (row + 0.5) * self.step]
    }
}

/// Parts from the bottom of the stack to its top.
struct Scene(Vec<Part>);

impl Scene {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut parts = Vec::new();
        match rng.random_range(0..4) {
            0 => symmetric_body(rng, &mut parts),
            1 => flat_bottomed_body(rng, &mut parts),
            2 => body_with_loop(rng, &mut parts),
            _ => free_heap(rng, &mut parts),
        }
        Self(parts)
    }

    fn grey(&self, point: Point) -> f32 {
        self.0.iter().rev().find_map(|part| part.grey(point)).unwrap_or(0.0)
    }

    /// Opposite corners of what is not black; none if that is next to nothing.
    fn bounds(&self) -> Option<[Point; 2]> {
        const GRID: usize = 64;
        const REACH: f32 = 2.0;
        let place = |index: usize| REACH * (2.0 * (index as f32 + 0.5) / GRID as f32 - 1.0);
        let (mut low, mut high) = ([REACH; 2], [-REACH; 2]);
        let mut covered = 0;
        for cell in 0..GRID * GRID {
            let point = [place(cell % GRID), place(cell / GRID)];
            if self.grey(point) > 0.0 {
                covered += 1;
                for axis in 0..2 {
                    low[axis] = low[axis].min(point[axis]);
                    high[axis] = high[axis].max(point[axis]);
                }
            }
        }
        let coverage = covered as f32 / (GRID * GRID) as f32;
        (coverage > LEAST_COVERAGE).then_some([low, high])
    }
}

/// An upright body with a mirror axis, with or without limbs, a slit from below and a notch from above.
fn symmetric_body(rng: &mut ChaCha8Rng, parts: &mut Vec<Part>) {
    let paint = Paint::random(rng);
    if rng.random_bool(0.6) {
        let limb = Outline::strip(rng, 0.08..0.3);
        let length = rng.random_range(0.3..1.0);
        let at = [rng.random_range(0.3..0.8), rng.random_range(-0.9..0.2)];
        parts.push(Part {
            turn: rng.random_range(-1.2..0.3),
            mirrored: true,
            ..Part::new(limb, at, [1.0, length], paint.variant(rng))
        });
    }
    let size = [rng.random_range(0.3..0.9), rng.random_range(0.6..1.2)];
    parts.push(Part::new(Outline::symmetric_profile(rng), [0.0; 2], size, paint.clone()));
    if rng.random_bool(0.35) {
        let gap = [rng.random_range(0.02..0.2), rng.random_range(0.3..1.8)];
        parts.push(Part::cut(Outline::symmetric_profile(rng), [0.0, size[1]], gap));
    }
    if rng.random_bool(0.5) {
        let notch = [rng.random_range(0.05..0.4), rng.random_range(0.05..0.5)];
        parts.push(Part::cut(Outline::superellipse(rng), [0.0, -size[1]], notch));
    }
    if rng.random_bool(0.4) {
        let seam = Outline::strip(rng, 0.02..0.15);
        parts.push(Part {
            mirrored: true,
            ..Part::new(seam, [rng.random_range(0.0..0.3), 0.0], size, paint.variant(rng))
        });
    }
}

/// A body that lies on a straight edge, with or without bands across it and holes.
fn flat_bottomed_body(rng: &mut ChaCha8Rng, parts: &mut Vec<Part>) {
    let paint = Paint::random(rng);
    let size = [rng.random_range(0.3..1.1), rng.random_range(0.7..1.1)];
    let facing = if rng.random_bool(0.5) { PI } else { -PI } / 2.0;
    let lying = |part: Part| Part { turn: facing, flipped: facing < 0.0, ..part };
    let body = Outline::flat_profile(rng);
    parts.push(lying(Part::new(body, [0.0; 2], size, paint.clone())));
    for _ in 0..rng.random_range(0..4) {
        let at = [rng.random_range(-0.8..0.8), rng.random_range(-0.8..0.3)];
        let extent = [rng.random_range(0.05..0.5), rng.random_range(0.1..0.8)];
        let outline = Outline::random(rng);
        parts.push(Part {
            turn: rng.random_range(-1.0..1.0),
            cuts: rng.random_bool(0.6),
            ..Part::new(outline, at, extent, paint.variant(rng))
        });
    }
    if rng.random_bool(0.5) {
        let sole = [rng.random_range(0.04..0.15), size[1]];
        let outline = Outline::flat_profile(rng);
        parts.push(lying(Part::new(outline, [0.0; 2], sole, paint.variant(rng))));
    }
}

/// A compact body under a loop, as of things that are carried or hung.
fn body_with_loop(rng: &mut ChaCha8Rng, parts: &mut Vec<Part>) {
    let paint = Paint::random(rng);
    let size = [rng.random_range(0.5..1.1), rng.random_range(0.3..0.9)];
    if rng.random_bool(0.75) {
        let extent = [size[0] * rng.random_range(0.3..0.95), rng.random_range(0.2..0.9)];
        let outline = Outline::superellipse(rng);
        parts.push(Part {
            hollow: rng.random_range(0.65..0.92),
            ..Part::new(outline, [0.0, -size[1]], extent, paint.variant(rng))
        });
    }
    let body =
        if rng.random_bool(0.6) { Outline::superellipse(rng) } else { Outline::symmetric_profile(rng) };
    parts.push(Part::new(body, [0.0; 2], size, paint.clone()));
    for _ in 0..rng.random_range(0..3) {
        let at = [0.0, size[1] * rng.random_range(-0.8..0.8)];
        let extent = [size[0] * rng.random_range(0.1..1.0), rng.random_range(0.03..0.3)];
        let outline = Outline::superellipse(rng);
        parts.push(Part::new(outline, at, extent, paint.variant(rng)));
    }
}

/// Up to five parts of any kind, anywhere.
fn free_heap(rng: &mut ChaCha8Rng, parts: &mut Vec<Part>) {
    for layer in 0..rng.random_range(1..6) {
        let at = [rng.random_range(-0.7..0.7), rng.random_range(-0.7..0.7)];
        let extent = [rng.random_range(0.1..1.0), rng.random_range(0.1..1.0)];
        let outline = Outline::random(rng);
        let paint = Paint::random(rng);
        parts.push(Part {
            turn: rng.random_range(-PI..PI),
            mirrored: rng.random_bool(0.3),
            hollow: if rng.random_bool(0.2) { rng.random_range(0.4..0.9) } else { 0.0 },
            cuts: layer > 0 && rng.random_bool(0.35),
            ..Part::new(outline, at, extent, paint)
        });
    }
}

/// An outline placed in the plane, and what it does there.
struct Part {
    outline: Outline,
    at: Point,
    /// Half the width and half the height, before turning.
    extent: Point,
    /// Angle in radians.
    turn: f32,
    /// Repeated on the other side of the vertical axis.
    mirrored: bool,
    /// Left and right exchanged in the outline's own coordinates.
    flipped: bool,
    /// What lies nearer to the middle than this share of the way to the outline is left out.
    hollow: f32,
    /// Takes away what lies beneath instead of covering it.
    cuts: bool,
    paint: Paint,
}

impl Part {
    fn new(outline: Outline, at: Point, extent: Point, paint: Paint) -> Self {
        Self {
            outline,
            at,
            extent,
            turn: 0.0,
            mirrored: false,
            flipped: false,
            hollow: 0.0,
            cuts: false,
            paint,
        }
    }

    fn cut(outline: Outline, at: Point, extent: Point) -> Self {
        Self { cuts: true, ..Self::new(outline, at, extent, Paint::default()) }
    }

    /// The grey level at a point of the plane, zero for a cut; none where this part is not.
    fn grey(&self, [x, y]: Point) -> Option<f32> {
        let x = if self.mirrored { x.abs() } else { x };
        let (sin, cos) = self.turn.sin_cos();
        let (dx, dy) = (x - self.at[0], y - self.at[1]);
        let mut u = (cos * dx + sin * dy) / self.extent[0];
        let v = (cos * dy - sin * dx) / self.extent[1];
        if self.flipped {
            u = -u;
        }
        let level = self.outline.level(u, v);
        (self.hollow..1.0).contains(&level).then(
            || {
                if self.cuts { 0.0 } else { self.paint.grey([x, y], level) }
            },
        )
    }
}

/// A closed curve about the origin of its own coordinates, in which it reaches about one unit far.
enum Outline {
    /// Distance from the origin by direction, at equal angles.
    Radial(Curve),
    /// `|u|^p + |v|^p = 1`: from a diamond by way of an ellipse to a rectangle.
    Superellipse { power: f32 },
    /// Swept along the axis `v` from -1 to 1: where the middle lies, and how far it is from there to either side.
    Profile { middle: Curve, half_width: Curve },
}

impl Outline {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..5) {
            0 => Self::radial(rng),
            1 => Self::superellipse(rng),
            2 => Self::symmetric_profile(rng),
            3 => Self::flat_profile(rng),
            _ => Self::strip(rng, 0.05..0.3),
        }
    }

    fn radial(rng: &mut ChaCha8Rng) -> Self {
        let corners = rng.random_range(3..10);
        let least = rng.random_range(0.3..0.9);
        let mut radii = Curve::random(rng, corners, least..1.0);
        radii.close();
        Self::Radial(radii)
    }

    fn superellipse(rng: &mut ChaCha8Rng) -> Self {
        Self::Superellipse { power: 2f32.powf(rng.random_range(0.0..3.5)) }
    }

    fn symmetric_profile(rng: &mut ChaCha8Rng) -> Self {
        let knots = rng.random_range(2..7);
        let least = rng.random_range(0.1..0.9);
        Self::Profile { middle: Curve::constant(0.0), half_width: Curve::random(rng, knots, least..1.0) }
    }

    /// A profile whose side towards positive `u` is straight.
    fn flat_profile(rng: &mut ChaCha8Rng) -> Self {
        let knots = rng.random_range(2..8);
        let least = rng.random_range(0.1..0.7);
        let half_width = Curve::random(rng, knots, least..1.0);
        let middle =
            Curve { knots: half_width.knots.iter().map(|width| 1.0 - width).collect(), ..half_width };
        Self::Profile { middle, half_width }
    }

    /// A band of nearly constant width, straight or bent.
    fn strip(rng: &mut ChaCha8Rng, half_width: std::ops::Range<f32>) -> Self {
        let bend = rng.random_range(0.0..0.5);
        let width = rng.random_range(half_width);
        Self::Profile {
            middle: Curve::random(rng, 4, -bend..bend + 0.01),
            half_width: Curve::random(rng, 3, 0.7 * width..width),
        }
    }

    /// Zero in the middle, one on the outline, more outside.
    fn level(&self, u: f32, v: f32) -> f32 {
        match self {
            Self::Radial(radii) => u.hypot(v) / radii.at(v.atan2(u) / TAU + 0.5),
            Self::Superellipse { power } => (u.abs().powf(*power) + v.abs().powf(*power)).powf(1.0 / power),
            Self::Profile { middle, half_width } => {
                let along = (v + 1.0) / 2.0;
                let across = (u - middle.at(along)).abs() / half_width.at(along);
                across.max(v.abs())
            }
        }
    }
}

/// A function on [0, 1] through equally spaced knots.
struct Curve {
    knots: Vec<f32>,
    /// Rounded between the knots, not straight.
    smooth: bool,
}

impl Curve {
    fn constant(value: f32) -> Self {
        Self { knots: vec![value; 2], smooth: false }
    }

    fn random(rng: &mut ChaCha8Rng, knots: usize, values: std::ops::Range<f32>) -> Self {
        Self {
            knots: (0..knots).map(|_| rng.random_range(values.clone())).collect(),
            smooth: rng.random_bool(0.5),
        }
    }

    /// Lets the curve end where it begins.
    fn close(&mut self) {
        self.knots.push(self.knots[0]);
    }

    fn at(&self, position: f32) -> f32 {
        let last = self.knots.len() - 1;
        let scaled = position.clamp(0.0, 1.0) * last as f32;
        let left = (scaled as usize).min(last - 1);
        let linear = scaled - left as f32;
        let share = if self.smooth { linear * (linear * (3.0 - 2.0 * linear)) } else { linear };
        self.knots[left] + share * (self.knots[left + 1] - self.knots[left])
    }
}

/// The surface of a part.
#[derive(Clone, Default)]
struct Paint {
    base: f32,
    /// Change of the grey level per unit of the plane.
    slope: Point,
    /// Darkening towards the outline.
    rim: f32,
    waves: Vec<Wave>,
}

/// Stripes across the plane; several of them at odds make a texture.
#[derive(Clone)]
struct Wave {
    frequency: Point,
    phase: f32,
    strength: f32,
    /// Bands with sharp borders.
    sharp: bool,
}

impl Paint {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut paint = Self {
            base: rng.random_range(0.3..1.0),
            slope: [rng.random_range(-0.2..0.2), rng.random_range(-0.2..0.2)],
            rim: rng.random_range(0.0..0.5),
            waves: Vec::new(),
        };
        if rng.random_bool(0.35) {
            let sharp = rng.random_bool(0.5);
            paint.waves.push(Wave::random(rng, 4.0..20.0, 0.4, sharp));
        }
        if rng.random_bool(0.5) {
            for _ in 0..6 {
                paint.waves.push(Wave::random(rng, 5.0..35.0, 0.12, false));
            }
        }
        paint
    }

    /// The same surface, lighter or darker.
    fn variant(&self, rng: &mut ChaCha8Rng) -> Self {
        Self { base: (self.base + rng.random_range(-0.3..0.3)).clamp(0.2, 1.0), ..self.clone() }
    }

    /// Never quite black, so that painted and empty ground differ.
    fn grey(&self, [x, y]: Point, level: f32) -> f32 {
        let waves: f32 = self.waves.iter().map(|wave| wave.at([x, y])).sum();
        let lit = self.base + self.slope[0] * x + self.slope[1] * y + waves;
        (lit * (1.0 - self.rim * level.powi(4))).clamp(0.05, 1.0)
    }
}

impl Wave {
    fn random(rng: &mut ChaCha8Rng, frequency: std::ops::Range<f32>, strongest: f32, sharp: bool) -> Self {
        let frequency = rng.random_range(frequency);
        // As often as not along an axis.
        let angle = if rng.random_bool(0.5) {
            f32::from(rng.random_range(0u8..2)) * PI / 2.0
        } else {
            rng.random_range(0.0..PI)
        };
        Self {
            frequency: [frequency * angle.cos(), frequency * angle.sin()],
            phase: rng.random_range(0.0..TAU),
            strength: rng.random_range(0.0..strongest),
            sharp,
        }
    }

    fn at(&self, [x, y]: Point) -> f32 {
        let wave = (self.frequency[0] * x + self.frequency[1] * y + self.phase).sin();
        self.strength * if self.sharp { wave.signum() } else { wave }
    }
}
