//! Errors of a card whose memory is full.

use candle_core::cuda_backend::cudarc::cublas::result::CublasError;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::cuda_backend::cudarc::driver::DriverError;
use candle_core::cuda_backend::CudaError;
use candle_core::Error;

/// Whether an error says that a card has no memory left, for a tensor, for a kernel or for cuBLAS.
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::WithBacktrace { inner, .. }
        | Error::Context { inner, .. }
        | Error::WithPath { inner, .. } => is_out_of_memory(inner),
        Error::Cuda(error) => error.downcast_ref().is_some_and(says_so),
        _ => false,
    }
}

fn says_so(error: &CudaError) -> bool {
    match error {
        CudaError::Cuda(DriverError(code)) | CudaError::Load { cuda: DriverError(code), .. } => {
            *code == CUresult::CUDA_ERROR_OUT_OF_MEMORY
        }
        CudaError::Cublas(CublasError(status)) => {
            *status == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::cuda_backend::WrapErr;

    #[test]
    fn a_full_card_is_told_from_other_errors() {
        let driver = |code| Err::<(), _>(DriverError(code)).w().unwrap_err();
        let blas = |status| Err::<(), _>(CublasError(status)).w().unwrap_err();
        let full = driver(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert!(is_out_of_memory(&full) && is_out_of_memory(&full.context("somewhere")));
        assert!(is_out_of_memory(&blas(cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED)));
        assert!(!is_out_of_memory(&driver(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
        assert!(!is_out_of_memory(&blas(cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED)));
        assert!(!is_out_of_memory(&Error::Msg("out of memory".into())));
    }
}
