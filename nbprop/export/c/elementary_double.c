/* Elementary functions in double: polynomials without branches, which compilers vectorise; see nbprop/numerics.
 *
 * Double to integer goes through the addition of 1.5 * 2^52, whose sum holds the integer in its low bits.
 */

/* The bits of a number. */
static inline uint64_t bits_of(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* The number of some bits. */
static inline double from_bits(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* |x| */
static inline double magnitude(double x)
{
    return from_bits(bits_of(x) & 0x7FFFFFFFFFFFFFFFu);
}

/* The magnitude of y with the sign of x, zeros included. */
static inline double with_sign_of(double x, double y)
{
    return from_bits((bits_of(y) & 0x7FFFFFFFFFFFFFFFu) | (bits_of(x) & 0x8000000000000000u));
}

/* For x = k ln 2 + r with |r| <= ln(2) / 2: *shifted = k + 1.5 * 2^52; returns e^r - 1. */
static inline double reduced_exp(double x, double *shifted)
{
    const double rounded = x * 1.4426950408889634 + 6755399441055744.0;
    const double k = rounded - 6755399441055744.0;
    const double r = (x - k * 0x1.62e42fefa3800p-1) - k * 0x1.ef35793c76730p-45;
    double p = (((2.5114464535081603e-08 * r + 2.7626381604650146e-07) * r + 2.7557227986462265e-06) * r
                + 2.4801504314306175e-05) * r + 0.00019841269903003267;
    p = ((((p * r + 0.0013888888932481888) * r + 0.008333333333314588) * r + 0.04166666666657333) * r
         + 0.16666666666666685) * r + 0.5000000000000006;
    *shifted = rounded;
    return (r * r) * p + r;
}

/* 2^k for k in [-1022, 1023], from k + 1.5 * 2^52. */
static inline double power_of_two(double shifted)
{
    return from_bits((bits_of(shifted) << 52) + 0x3FF0000000000000u);
}

/* e^x, within 1.1 units in the last place (ulp). */
static inline double nb_exp(double x)
{
    double z = x > 710.0 ? 710.0 : x;
    z = z < -746.0 ? -746.0 : z;
    double shifted;
    const double p = reduced_exp(z, &shifted);
    /* 2^k in two factors: k = 1024 overflows one, and a subnormal result is to be rounded once. */
    const uint64_t exponent = bits_of(shifted) << 52;
    const uint64_t half = (bits_of(shifted) << 51) & 0xFFF0000000000000u;
    return (p + 1.0) * from_bits(half + 0x3FF0000000000000u) * from_bits((exponent - half) + 0x3FF0000000000000u);
}

/* e^x - 1, also where x is small, within 2.3 ulp. */
static inline double nb_expm1(double x)
{
    double z = x > 710.0 ? 710.0 : x;
    z = z < -45.0 ? -45.0 : z;
    double shifted;
    const double p = reduced_exp(z, &shifted);
    const int overflows = shifted > 6755399441055744.0 + 1023.0;
    const double scale = power_of_two(overflows ? shifted - 1.0 : shifted);
    const double y = scale * p + (scale - 1.0);
    return with_sign_of(x, overflows ? y + y : y);
}

/* The hyperbolic tangent, (1 - e) / (1 + e) with e = exp(-2 |x|) = 2^-k (1 - 2 q), within 2.4 ulp. */
static inline double nb_tanh(double x)
{
    double a = magnitude(x);
    a = a > 22.5 ? 22.5 : a;
    const double minus_k = a * -2.8853900817779268 + 6755399441055744.0;
    const double r = a + (minus_k - 6755399441055744.0) * 0.34657359027997264;
    const double r2 = r * r, r4 = r2 * r2;
    /* Estrin's scheme: the steps of Horner's wait for each other. */
    const double low = (4 * 0.16666666666666685 * r - 2 * 0.5000000000000006)
        + (16 * 0.008333333333314588 * r - 8 * 0.04166666666657333) * r2;
    const double high = (64 * 0.00019841269903003267 * r - 32 * 0.0013888888932481888)
        + (256 * 2.7557227986462265e-06 * r - 128 * 2.4801504314306175e-05) * r2;
    const double top = 1024 * 2.5114464535081603e-08 * r - 512 * 2.7626381604650146e-07;
    const double q = r2 * (low + r4 * (high + r4 * top)) + r;
    const uint64_t exponent = bits_of(minus_k) << 52;
    const double scale = from_bits(exponent + 0x3FF0000000000000u);
    const double twice = from_bits(exponent + 0x4000000000000000u) * q;
    return with_sign_of(x, (twice + (1.0 - scale)) / ((1.0 + scale) - twice));
}

/* 1 / (1 + e^-x), within 2.5 ulp. */
static inline double nb_sigmoid(double x)
{
    const double e = nb_exp(-magnitude(x));
    return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

/* The error function, within 3.2 ulp. */
static inline double nb_erf(double x)
{
    double a = magnitude(x);
    a = a > 5.95 ? 5.95 : a;
    double q = ((((1.1795870481822756e-14 * a - 4.753262719760982e-13) * a + 8.718209680057757e-12) * a
                 - 9.545112617711785e-11) * a + 6.808593743339538e-10) * a - 3.151820718501472e-09;
    q = (((((q * a + 7.777005540215633e-09) * a + 8.388742288236083e-09) * a - 1.7413674792961067e-07) * a
          + 8.537965365172726e-07) * a - 2.4299162212178447e-06) * a + 3.5648188500185713e-06;
    q = (((((q * a + 2.795747957207609e-06) * a - 2.9323461568793007e-05) * a + 6.428997130700891e-05) * a
          + 2.5955222569427032e-05) * a - 0.0005901468175791807) * a + 0.0016962105308330159;
    q = ((((q * a - 0.00020919523040096398) * a - 0.019128446963060982) * a + 0.10277260330006031) * a
         + 0.6366197723676116) * a + 0.1283791670955126;
    double shifted;
    const double p = reduced_exp(-(a * q + a), &shifted);
    const double scale = power_of_two(shifted);
    return with_sign_of(x, scale * p + (scale - 1.0));
}

/* log(1 + f) - f for 1 + f in [sqrt(1/2), sqrt(2)]. */
static inline double log_tail(double f)
{
    const double s = f / (2.0 + f), z = s * s;
    const double r = (((((0.14797511683817774 * z + 0.15313902838504156) * z + 0.18183569756785123) * z
                        + 0.222221984756213) * z + 0.28571428743266913) * z + 0.3999999999941107) * z
        + 0.6666666666666735;
    const double h = 0.5 * f * f;
    return s * (h + z * r) - h;
}

/* log(1 + e^x) = max(x, 0) + log(1 + e) with e = exp(-|x|), within 2.3 ulp. */
static inline double nb_softplus(double x)
{
    const double e = nb_exp(-magnitude(x));
    const int halve = e > 0.41421356237309503; /* then 1 + e is twice f + 1, and its logarithm ln 2 more */
    const double f = halve ? 0.5 * e - 0.5 : e;
    const double linear = x < 0.0 ? 0.0 : x;
    return linear + ((halve ? 0.6931471805599453 : 0.0) + (f + log_tail(f)));
}

/* g, no larger than that a running mean of its square stays finite; what is not finite stays so. */
static inline double squarable(double g)
{
    const double most = 0x1p511;
    const double limited = g > most ? most : g < -most ? -most : g;
    return limited + (g - g);
}
