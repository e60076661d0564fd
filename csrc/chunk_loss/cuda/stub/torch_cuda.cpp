// Linked against in place of libtorch_cuda.so, which a CPU build of torch does not have. The real
// one (same soname) is loaded by torch before cwt_ext is.
extern "C" void aoti_torch_get_current_cuda_stream() {}
