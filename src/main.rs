use candle_core::*;
fn main() -> Result<()> {
    let d = Device::Cpu;
    for (m, k, n) in [(2048usize, 576usize, 960usize), (2048,576,576),(2048, 576, 3072), (2048, 1536, 576), (2048, 640, 2048*2), (1024,576,3072),(4096, 576, 3072),(2048,576,49152/12)] {
        let a = Tensor::randn(0f32, 1., (m, k), &d)?;
        let b = Tensor::randn(0f32, 1., (n, k), &d)?.t()?;
        let bc = b.contiguous()?;
        for (name,b) in [("t",&b),("c",&bc)] {
        a.matmul(b)?;
        let t = std::time::Instant::now();
        let reps = 20;
        for _ in 0..reps { a.matmul(b)?; }
        let s = t.elapsed().as_secs_f64() / reps as f64;
        println!("{m}x{k}x{n} {name}: {:.1} GF/s", 2. * (m * k * n) as f64 / s / 1e9);
        }
    }
    Ok(())
}
