/* Elementary functions in float: polynomials without branches, which compilers vectorise; see nbprop/numerics.
 *
 * Float to integer goes through the addition of 1.5 * 2^23, whose sum holds the integer in its low bits.
 */

/* The bits of a number. */
static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* The number of some bits. */
static inline float from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* |x| */
static inline float magnitude(float x)
{
    return from_bits(bits_of(x) & 0x7FFFFFFFu);
}

/* The magnitude of y with the sign of x, zeros included. */
static inline float with_sign_of(float x, float y)
{
    return from_bits((bits_of(y) & 0x7FFFFFFFu) | (bits_of(x) & 0x80000000u));
}

/* For x = k ln 2 + r with |r| <= ln(2) / 2: *shifted = k + 1.5 * 2^23; returns e^r - 1. */
static inline float reduced_exp(float x, float *shifted)
{
    const float rounded = x * 1.44269504f + 12582912.0f;
    const float k = rounded - 12582912.0f;
    const float r = (x - k * 0.693145752f) - k * 1.42860677e-06f;
    const float p =
        (((0.00139464677f * r + 0.00836661082f) * r + 0.0416662819f) * r + 0.166665428f) * r + 0.5f;
    *shifted = rounded;
    return (r * r) * p + r;
}

/* 2^k for k in [-126, 127], from k + 1.5 * 2^23. */
static inline float power_of_two(float shifted)
{
    return from_bits((bits_of(shifted) << 23) + 0x3F800000u);
}

/* e^x, within 1.1 units in the last place (ulp). */
static inline float nb_exp(float x)
{
    float z = x > 89.0f ? 89.0f : x;
    z = z < -104.0f ? -104.0f : z;
    float shifted;
    const float p = reduced_exp(z, &shifted);
    /* 2^k in two factors: k = 128 overflows one, and a subnormal result is to be rounded once. */
    const uint32_t exponent = bits_of(shifted) << 23;
    const uint32_t half = (bits_of(shifted) << 22) & 0xFF800000u;
    return (p + 1.0f) * from_bits(half + 0x3F800000u) * from_bits((exponent - half) + 0x3F800000u);
}

/* e^x - 1, also where x is small, within 1.8 ulp. */
static inline float nb_expm1(float x)
{
    float z = x > 89.0f ? 89.0f : x;
    z = z < -20.0f ? -20.0f : z;
    float shifted;
    const float p = reduced_exp(z, &shifted);
    const int overflows = shifted > 12582912.0f + 127.0f;
    const float scale = power_of_two(overflows ? shifted - 1.0f : shifted);
    const float y = scale * p + (scale - 1.0f);
    return with_sign_of(x, overflows ? y + y : y);
}

/* The hyperbolic tangent, (1 - e) / (1 + e) with e = exp(-2 |x|), within 2.1 ulp. */
static inline float nb_tanh(float x)
{
    float z = -2.0f * magnitude(x);
    z = z < -20.0f ? -20.0f : z;
    float shifted;
    const float p = reduced_exp(z, &shifted);
    const float scale = power_of_two(shifted);
    return with_sign_of(x, (scale * p + (scale - 1.0f)) / (scale * p + (scale + 1.0f)));
}

/* 1 / (1 + e^-x), within 2.5 ulp. */
static inline float nb_sigmoid(float x)
{
    /* exp(-|x|) as a normal number times 2^-64, so that a subnormal one is rounded once. */
    float z = -magnitude(x);
    z = z < -104.0f ? -104.0f : z;
    float shifted;
    const float p = reduced_exp(z, &shifted);
    const float scale = from_bits((bits_of(shifted) << 23) + 0x5F800000u);
    const float e = (scale * p + scale) * 5.42101086e-20f;
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* The error function, within 2.3 ulp. */
static inline float nb_erf(float x)
{
    float a = magnitude(x);
    a = a > 3.95f ? 3.95f : a;
    float q = ((((-9.25613101e-06f * a + 0.000117640668f) * a - 0.000632836661f) * a + 0.00166703015f) * a
               - 0.000160401207f) * a - 0.0191530601f;
    q = ((q * a + 0.102777829f) * a + 0.636619382f) * a + 0.128379172f;
    float shifted;
    const float p = reduced_exp(-(a * q + a), &shifted);
    const float scale = power_of_two(shifted);
    return with_sign_of(x, scale * p + (scale - 1.0f));
}

/* log(1 + f) - f for 1 + f in [sqrt(1/2), sqrt(2)]. */
static inline float log_tail(float f)
{
    float p = ((((-0.0785950422f * f + 0.128815889f) * f - 0.131287739f) * f + 0.141812041f) * f
               - 0.166245535f) * f + 0.200022861f;
    p = (p * f - 0.250008106f) * f + 0.333333164f;
    return (f * f) * (f * p - 0.5f);
}

/* log(1 + e^x) = max(x, 0) + log(1 + e) with e = exp(-|x|), within 1.9 ulp. */
static inline float nb_softplus(float x)
{
    const float e = nb_exp(-magnitude(x));
    const int halve = e > 0.41421356f; /* then 1 + e is twice f + 1, and its logarithm ln 2 more */
    const float f = halve ? 0.5f * e - 0.5f : e;
    const float linear = x < 0.0f ? 0.0f : x;
    return linear + ((halve ? 0.693147181f : 0.0f) + (f + log_tail(f)));
}

/* g, no larger than that a running mean of its square stays finite; what is not finite stays so. */
static inline float squarable(float g)
{
    const float most = 9.223372036854775808e18f;
    const float limited = g > most ? most : g < -most ? -most : g;
    return limited + (g - g);
}
