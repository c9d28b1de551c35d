// CUDA twins of the loops in cpu_conv.py and cpu_slices.py, which say what they compute.
//
// REAL is float or double (-DREAL=...). No include, no barrier, no atomic: every thread writes entries of its own (`mark`
// alone writes one value to a place from many), and every sum has one order, so that results are the same every time.
// Compiled without fused multiply-adds, so that all kernels find the same cell for a point, and the host as well.

struct COMPLEX { // as complex64 and complex128
    REAL x, y;
};

#define KERNEL extern "C" __global__ void
#define EACH(i, count) \
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += gridDim.x * blockDim.x)

// -- networks: images (n, height, width, channels) -----------------------------------------------------------------

// Neighbourhoods (pixels, kernel, kernel, channels) of the pixels of image rows `first` and on, counted through the stack
KERNEL gather(const REAL *x, unsigned height, unsigned width, unsigned channels, unsigned kernel, unsigned first,
              unsigned count, REAL *out)
{
    EACH(i, count) {
        unsigned c = i % channels, rest = i / channels;
        unsigned dx = rest % kernel, dy = rest / kernel % kernel;
        rest /= kernel * kernel;
        unsigned row = first + rest / width;
        int shift = kernel / 2, across = (int)(rest % width + dx) - shift, down = (int)(row % height + dy) - shift;
        bool inside = across >= 0 && across < (int)width && down >= 0 && down < (int)height;
        out[i] = inside ? x[((row + dy - shift) * width + across) * channels + c] : REAL(0);
    }
}

KERNEL pool(const REAL *x, const REAL *bias, REAL slope, unsigned tall, unsigned wide, unsigned channels, unsigned count,
            REAL *out, unsigned char *code)
{
    unsigned height = tall / 2, width = wide / 2;
    EACH(i, count) {
        unsigned c = i % channels, across = i / channels % width, row = i / channels / width;
        const REAL *square = x + ((row / height * tall + 2 * (row % height)) * wide + 2 * across) * channels + c;
        REAL best = square[0];
        unsigned which = 0;
        for (unsigned k = 1; k < 4; ++k) {
            REAL v = square[((k >> 1) * wide + (k & 1)) * channels];
            which = v > best ? k : which;
            best = v > best ? v : best;
        }
        best += bias[c];
        bool negative = best < 0;
        code[i] = negative ? which + 4 : which;
        out[i] = negative ? best * slope : best;
    }
}

KERNEL bias_relu(const REAL *x, const REAL *bias, REAL slope, unsigned channels, unsigned count, REAL *out,
                 unsigned char *code)
{
    EACH(i, count) {
        REAL v = x[i] + bias[i % channels];
        bool negative = v < 0;
        code[i] = negative ? 4 : 0;
        out[i] = negative ? v * slope : v;
    }
}

KERNEL by_sign(const REAL *g, const unsigned char *code, REAL slope, unsigned count, REAL *out)
{
    EACH(i, count) out[i] = code[i] >= 4 ? g[i] * slope : g[i];
}

KERNEL unpool(const REAL *g, const unsigned char *code, unsigned tall, unsigned wide, unsigned channels, unsigned count,
              REAL *out)
{
    unsigned height = tall / 2, width = wide / 2;
    EACH(i, count) {
        unsigned c = i % channels, across = i / channels % wide, down = i / channels / wide % tall;
        unsigned image = i / channels / wide / tall;
        REAL v = 0;
        if (down / 2 < height && across / 2 < width) {
            unsigned k = ((image * height + down / 2) * width + across / 2) * channels + c;
            if ((code[k] & 3) == (down & 1) * 2 + (across & 1)) v = g[k];
        }
        out[i] = v;
    }
}

KERNEL pick(const REAL *q, const unsigned char *code, unsigned tall, unsigned wide, unsigned channels, unsigned count,
            REAL *out)
{
    unsigned height = tall / 2, width = wide / 2;
    EACH(i, count) {
        unsigned c = i % channels, across = i / channels % width, row = i / channels / width, k = code[i] & 3;
        unsigned down = row / height * tall + 2 * (row % height) + (k >> 1);
        out[i] = q[(down * wide + 2 * across + (k & 1)) * channels + c];
    }
}

__device__ void descend(REAL *p, REAL *m, REAL *v, REAL g, REAL rate, REAL beta1, REAL beta2, REAL floor)
{
    *m = beta1 * *m + (1 - beta1) * g;
    *v = beta2 * *v + (1 - beta2) * g * g;
    *p -= rate * *m / (sqrt(*v) + floor);
}

KERNEL adam(REAL *p, REAL *m, REAL *v, const REAL *g, REAL rate, REAL beta1, REAL beta2, REAL floor, unsigned count)
{
    EACH(i, count) descend(p + i, m + i, v + i, g[i], rate, beta1, beta2, floor);
}

KERNEL adam_rows(REAL *p, REAL *m, REAL *v, const REAL *g, const long long *rows, REAL rate, REAL beta1, REAL beta2,
                 REAL floor, unsigned width, unsigned count)
{
    EACH(i, count) {
        long long k = rows[i / width] * width + i % width;
        descend(p + k, m + k, v + k, g[i], rate, beta1, beta2, floor);
    }
}

// -- slices through half spectra (n, n, n / 2 + 1) -------------------------------------------------------------------

struct Cell { // lower corner as an index, upper ones of y and z, fractions, whether the point stands for its opposite
    int x, y[2], z[2];
    REAL fx, fy, fz;
    bool mirrored;
};

__device__ int bounded(REAL v, int low, int high) // NaN is `low`: a matrix that is no rotation stays in the array
{
    return (int)fmin(fmax(v, (REAL)low), (REAL)high);
}

__device__ Cell locate(const REAL *turn, int kx, int ky, double step, int n)
{
    REAL u = (REAL)(step * kx), v = (REAL)(step * ky);
    REAL x = u * turn[0] + v * turn[3], y = u * turn[1] + v * turn[4], z = u * turn[2] + v * turn[5];
    Cell c;
    c.mirrored = x < 0;
    if (c.mirrored) {
        x = -x;
        y = -y;
        z = -z;
    }
    c.x = bounded(floor(x), 0, n / 2 - 1);
    int iy = bounded(floor(y), -n, n - 2), iz = bounded(floor(z), -n, n - 2);
    c.fx = x - (REAL)c.x;
    c.fy = y - (REAL)iy;
    c.fz = z - (REAL)iz;
    for (int k = 0; k < 2; ++k) {
        c.y[k] = iy + k < 0 ? iy + k + n : iy + k;
        c.z[k] = iz + k < 0 ? iz + k + n : iz + k;
    }
    return c;
}

__device__ int frequency(unsigned i, unsigned n) { return 2 * i < n ? (int)i : (int)i - (int)n; }

__device__ bool inside(int kx, int ky, double radius)
{
    double rest = radius * radius - (double)(ky * ky);
    return rest > 0 && kx < sqrt(rest);
}

__device__ unsigned place(const Cell &c, unsigned corner, unsigned n)
{
    return (c.z[corner >> 2] * n + c.y[corner >> 1 & 1]) * (n / 2 + 1) + c.x + (corner & 1);
}

__device__ REAL weight(const Cell &c, unsigned corner)
{
    REAL w = corner & 4 ? c.fz : 1 - c.fz;
    w *= corner & 2 ? c.fy : 1 - c.fy;
    return w * (corner & 1 ? c.fx : 1 - c.fx);
}

__device__ COMPLEX mix(REAL f, COMPLEX a, COMPLEX b)
{
    REAL e = 1 - f;
    return COMPLEX{e * a.x + f * b.x, e * a.y + f * b.y};
}

__device__ COMPLEX minus(COMPLEX a, COMPLEX b) { return COMPLEX{a.x - b.x, a.y - b.y}; }

__device__ COMPLEX conjugate_if(bool mirrored, COMPLEX a) { return COMPLEX{a.x, mirrored ? -a.y : a.y}; }

__device__ void corners(const COMPLEX *spectrum, const Cell &c, unsigned n, COMPLEX *a)
{
    for (unsigned k = 0; k < 8; ++k) a[k] = spectrum[place(c, k, n)];
}

KERNEL central_slice(const COMPLEX *spectrum, const REAL *turns, double step, double radius, unsigned n, unsigned height,
                     unsigned count, COMPLEX *out)
{
    unsigned half = height / 2 + 1;
    EACH(i, count) {
        int kx = i % half, ky = frequency(i / half % height, height);
        COMPLEX value = {0, 0};
        if (inside(kx, ky, radius)) {
            Cell c = locate(turns + i / half / height * 9, kx, ky, step, n);
            COMPLEX a[8];
            corners(spectrum, c, n, a);
            COMPLEX lower = mix(c.fy, mix(c.fx, a[0], a[1]), mix(c.fx, a[2], a[3]));
            COMPLEX upper = mix(c.fy, mix(c.fx, a[4], a[5]), mix(c.fx, a[6], a[7]));
            value = conjugate_if(c.mirrored, mix(c.fz, lower, upper));
        }
        out[i] = value;
    }
}

// Derivatives in the poses, summed over each row of a slice: (images, height, 2, 3)
KERNEL slice_rotations(const COMPLEX *spectrum, const REAL *turns, const COMPLEX *g, double step, double radius,
                       unsigned n, unsigned height, unsigned count, double *out)
{
    unsigned half = height / 2 + 1;
    EACH(row, count) {
        int ky = frequency(row % height, height);
        double sums[6] = {0, 0, 0, 0, 0, 0};
        for (int kx = 0; kx < (int)half && inside(kx, ky, radius); ++kx) {
            Cell c = locate(turns + row / height * 9, kx, ky, step, n);
            COMPLEX a[8];
            corners(spectrum, c, n, a);
            COMPLEX dx = mix(c.fz, mix(c.fy, minus(a[1], a[0]), minus(a[3], a[2])),
                             mix(c.fy, minus(a[5], a[4]), minus(a[7], a[6])));
            COMPLEX b00 = mix(c.fx, a[0], a[1]), b01 = mix(c.fx, a[2], a[3]);
            COMPLEX b10 = mix(c.fx, a[4], a[5]), b11 = mix(c.fx, a[6], a[7]);
            COMPLEX d[3] = {dx, mix(c.fz, minus(b01, b00), minus(b11, b10)), mix(c.fy, minus(b10, b00), minus(b11, b01))};
            COMPLEX value = g[row * half + kx];
            if (c.mirrored) value.x = -value.x; // -conj: both signs of S = conj(F(-q)) enter the derivative
            for (int k = 0; k < 3; ++k) {
                REAL t = value.x * d[k].x + value.y * d[k].y;
                sums[k] += (double)kx * t;
                sums[3 + k] += (double)ky * t;
            }
        }
        for (int k = 0; k < 6; ++k) out[6 * row + k] = sums[k];
    }
}

KERNEL mark(const REAL *turns, double step, double radius, unsigned n, unsigned height, unsigned count, bool *out)
{
    unsigned half = height / 2 + 1;
    EACH(i, count) {
        int kx = i % half, ky = frequency(i / half % height, height);
        if (inside(kx, ky, radius)) {
            Cell c = locate(turns + i / half / height * 9, kx, ky, step, n);
            for (unsigned k = 0; k < 8; ++k) out[place(c, k, n)] = true;
        }
    }
}

// The cell (n, n, n / 2) that each point lies in, counted through; one beyond the last for points outside
KERNEL cells(const REAL *turns, double step, double radius, unsigned n, unsigned height, unsigned count, int *out)
{
    unsigned half = height / 2 + 1;
    EACH(i, count) {
        int kx = i % half, ky = frequency(i / half % height, height);
        out[i] = n * n * (n / 2);
        if (inside(kx, ky, radius)) {
            Cell c = locate(turns + i / half / height * 9, kx, ky, step, n);
            out[i] = (c.z[0] * n + c.y[0]) * (n / 2) + c.x;
        }
    }
}

// What the points of slices add to one voxel. `order` has the points by their cell, those of cell k from starts[k] to
// starts[k + 1]; a voxel is a corner of eight cells. With factors (images, volumes) values count by that of volume k.
__device__ COMPLEX collect(const COMPLEX *g, const REAL *turns, const long long *order, const long long *starts,
                           double step, unsigned n, unsigned height, unsigned voxel, const REAL *factors,
                           unsigned volumes, unsigned k)
{
    unsigned half = height / 2 + 1, x = voxel % (n / 2 + 1), y = voxel / (n / 2 + 1) % n, z = voxel / (n / 2 + 1) / n;
    COMPLEX sum = {0, 0};
    for (unsigned corner = 0; corner < 8; ++corner) {
        unsigned cx = x - (corner & 1); // beyond n / 2 where it would be negative
        if (cx >= n / 2) continue;
        unsigned cy = (y + n - (corner >> 1 & 1)) % n, cz = (z + n - (corner >> 2)) % n;
        unsigned cell = (cz * n + cy) * (n / 2) + cx;
        for (long long j = starts[cell]; j < starts[cell + 1]; ++j) {
            unsigned i = (unsigned)order[j], image = i / half / height;
            Cell c = locate(turns + image * 9, i % half, frequency(i / half % height, height), step, n);
            COMPLEX value = conjugate_if(c.mirrored, g[i]);
            REAL w = weight(c, corner);
            if (factors) w *= factors[image * volumes + k];
            sum.x += w * value.x;
            sum.y += w * value.y;
        }
    }
    return sum;
}

KERNEL slice_adjoint(const COMPLEX *g, const REAL *turns, const long long *order, const long long *starts, double step,
                     unsigned n, unsigned height, unsigned count, COMPLEX *out)
{
    EACH(i, count) out[i] = collect(g, turns, order, starts, step, n, height, i, 0, 1, 0);
}

KERNEL sparse_rows(const int *places, const REAL *factors, const COMPLEX *g, const REAL *turns, const long long *order,
                   const long long *starts, double step, unsigned n, unsigned height, unsigned volumes, unsigned count,
                   COMPLEX *out)
{
    EACH(i, count) {
        unsigned voxel = i / volumes, k = i % volumes;
        if (places[voxel] >= 0)
            out[places[voxel] * volumes + k] =
                collect(g, turns, order, starts, step, n, height, voxel, factors, volumes, k);
    }
}

KERNEL sparse_project(const COMPLEX *rows, const int *places, const REAL *factors, const REAL *turns, double step,
                      double radius, unsigned n, unsigned height, unsigned volumes, unsigned count, COMPLEX *out)
{
    unsigned half = height / 2 + 1;
    EACH(i, count) {
        int kx = i % half, ky = frequency(i / half % height, height);
        unsigned image = i / half / height;
        COMPLEX value = {0, 0};
        if (inside(kx, ky, radius)) {
            Cell c = locate(turns + image * 9, kx, ky, step, n);
#pragma unroll
            for (unsigned corner = 0; corner < 8; ++corner) {
                const COMPLEX *row = rows + places[place(c, corner, n)] * volumes;
                REAL w = weight(c, corner);
                for (unsigned k = 0; k < volumes; ++k) {
                    REAL f = w * factors[image * volumes + k];
                    value.x += f * row[k].x;
                    value.y += f * row[k].y;
                }
            }
            value = conjugate_if(c.mirrored, value);
        }
        out[i] = value;
    }
}

// Re <g, slice of volume k>, summed over each row of a slice: (images, height, volumes)
KERNEL sparse_factors(const COMPLEX *rows, const int *places, const COMPLEX *g, const REAL *turns, double step,
                      double radius, unsigned n, unsigned height, unsigned volumes, unsigned count, double *out)
{
    unsigned half = height / 2 + 1;
    EACH(i, count) {
        unsigned k = i % volumes, row = i / volumes;
        int ky = frequency(row % height, height);
        double sum = 0;
        for (int kx = 0; kx < (int)half && inside(kx, ky, radius); ++kx) {
            Cell c = locate(turns + row / height * 9, kx, ky, step, n);
            COMPLEX value = conjugate_if(c.mirrored, g[row * half + kx]);
            for (unsigned corner = 0; corner < 8; ++corner) {
                COMPLEX a = rows[places[place(c, corner, n)] * volumes + k];
                sum += weight(c, corner) * (value.x * a.x + value.y * a.y);
            }
        }
        out[i] = sum;
    }
}
