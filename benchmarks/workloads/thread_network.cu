// A 4-16-1 network in each thread, written by hand: what nbprop.cuda.forward_thread is compared with.
// Parameter k of thread i is params[k * n + i], and input k is x[k * n + i]: loads are coalesced.
// Order of the parameters: weight (4, 16), bias (16), weight (16, 1), bias (1). tanhf is CUDA's accurate one.

constexpr int N_IN = 4, N_HIDDEN = 16;

extern "C" __global__ void evaluate(float *y, const float *x, const float *params, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    float in[N_IN];
#pragma unroll
    for (int k = 0; k < N_IN; ++k) in[k] = x[k * n + i];
    const float *weight = params + i, *bias = weight + N_IN * N_HIDDEN * n;
    const float *out = bias + N_HIDDEN * n;
    float total = out[N_HIDDEN * n];
#pragma unroll
    for (int j = 0; j < N_HIDDEN; ++j) {
        float z = bias[j * n];
#pragma unroll
        for (int k = 0; k < N_IN; ++k) z = fmaf(in[k], weight[(k * N_HIDDEN + j) * n], z);
        total = fmaf(tanhf(z), out[j * n], total);
    }
    y[i] = total;
}
