// An OpenID Connect provider for tests: its own keys (RSA and EC), logins with any name, and access tokens in
// the form of RFC 9068. Arguments: port, secret of both clients, redirect URIs.
import { generateKeyPairSync } from "node:crypto";
import Provider from "oidc-provider";

const [port, secret, ...back] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const resource = "urn:streamsrv";
const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const elliptic = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;

const provider = new Provider(issuer, {
  jwks: {
    keys: [
      { ...privateKey.export({ format: "jwk" }), kid: "rsa", use: "sig", alg: "RS256" },
      { ...elliptic.export({ format: "jwk" }), kid: "ec", use: "sig", alg: "ES256" },
    ],
  },
  clients: [
    {
      client_id: "page",
      client_secret: secret,
      redirect_uris: back,
      post_logout_redirect_uris: back.map((each) => new URL("/", each).href),
      grant_types: ["authorization_code", "refresh_token"],
      response_types: ["code"],
    },
    {
      client_id: "scanner",
      client_secret: secret,
      redirect_uris: [],
      grant_types: ["client_credentials"],
      response_types: [],
    },
  ],
  cookies: { keys: ["test"] },
  claims: { openid: ["sub"], profile: ["preferred_username", "roles"] },
  conformIdTokenClaims: false,
  findAccount: (context, id) => ({
    accountId: id,
    claims: async () => ({ sub: id, preferred_username: id, roles: ["reader"] }),
  }),
  extraTokenClaims: (context, token) => ({ roles: [token.accountId ? "reader" : "sender"] }),
  features: {
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: "dicom",
        audience: "streamsrv",
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "ES256" } },
      }),
    },
  },
  pkce: { required: () => true },
  issueRefreshToken: async (context, client) => client.grantTypeAllowed("refresh_token"),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
